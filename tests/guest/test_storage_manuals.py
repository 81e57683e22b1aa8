# SPDX-License-Identifier: GPL-2.0-or-later
"""Manual pages of the storage daemons, against the programs."""
import re
import subprocess
import unittest

from hotpath_paths import ROOT
from storage_daemons import daemon_binary

SOURCE = ROOT / 'src' / 'contrib' / 'storage-growth'
PROGRAMS = ('qemu-storage-agent', 'qemu-storage-controller',
            'qemu-storage-ctl')
OPTION = re.compile(r'(?<![\w-])--?[a-zA-Z][\w-]*')


def help_of(program):
    """What a program says about itself."""
    return subprocess.run([daemon_binary(program), '--help'], text=True,
                          timeout=30, check=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE).stdout


def page_of(program):
    """The text of its manual page, without fonts."""
    text = (SOURCE / f'{program}.1').read_text()
    return re.sub(r'\\f.', '', text.replace('\\-', '-')).replace('"', '')


def options_of_help(text):
    """The options, without what is said about them."""
    lines = (re.match(r' +(-.*?)(  |$)', line) for line in text.splitlines())
    return {option for line in lines if line
            for option in OPTION.findall(line[1])}


def options_of_page(text):
    """The options that a page has a paragraph for."""
    section = text.split('.SH OPTIONS\n')[1].split('.SH ')[0]
    return {option for tag in re.findall(r'\.TP\n(.*)', section)
            for option in OPTION.findall(tag)}


class Manuals(unittest.TestCase):

    def test_options(self):
        """The page has each option that there is, and no other."""
        for program in PROGRAMS:
            with self.subTest(program=program):
                options = options_of_help(help_of(program))
                self.assertLess({'-h', '--help', '--tls-ca'}, options)
                self.assertEqual(options_of_page(page_of(program)), options)

    def test_commands(self):
        """... and each command of qemu-storage-ctl."""
        usage, = re.findall(r'\[OPTION.*?\] (.*)', help_of(PROGRAMS[2]))
        section = page_of(PROGRAMS[2]).split('.SH COMMANDS\n')[1]
        said = ' '.join(re.findall(r'\.TP\n(.*)', section))
        for command in usage.split('|'):
            self.assertIn(command.split()[0], said.replace(',', ' ').split())


if __name__ == '__main__':
    unittest.main()
