# SPDX-License-Identifier: GPL-2.0-or-later
"""Manual pages and units of the storage daemons, against the programs."""
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from hotpath_paths import ROOT
from storage_daemons import daemon_binary

SOURCE = ROOT / 'src' / 'contrib' / 'storage-growth'
PROGRAMS = ('qemu-storage-agent', 'qemu-storage-controller',
            'qemu-storage-ctl')
DAEMONS = PROGRAMS[:2]
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


class Units(unittest.TestCase):
    """systemd has to be there, but need not run."""

    def setUp(self):
        if not shutil.which('systemd-analyze'):
            self.skipTest('there is no systemd-analyze (package systemd)')
        self.dir = Path(tempfile.mkdtemp(dir='/tmp', prefix='hotunit-'))
        self.addCleanup(shutil.rmtree, self.dir)

    def verify(self, program, old='', new=''):
        """Check a unit with the program of the build; return complaints."""
        unit = self.dir / f'{program}.service'
        text = (SOURCE / unit.name).read_text()
        start = f'ExecStart={program} '
        self.assertEqual(text.count(start), 1)
        self.assertIn(old, text)
        unit.write_text(text.replace(
            start, f'ExecStart={daemon_binary(program)} ').replace(old, new))
        done = subprocess.run(
            ['systemd-analyze', 'verify', '--man=no', unit], text=True,
            timeout=120, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        # other units of this host may have faults of their own
        said = [line for line in done.stdout.splitlines()
                if program in line]
        if done.returncode and not said:
            self.skipTest(f'systemd-analyze cannot verify here: {done.stdout}')
        return said

    def test_verify(self):
        for program in DAEMONS:
            with self.subTest(program=program):
                self.assertEqual(self.verify(program), [])

    def test_faults_are_seen(self):
        for old, new in (('RestartSec=', 'RestrtSec='),
                         ('ExecStart=', 'ExecStart=/nonexistent')):
            with self.subTest(new=new):
                said = self.verify(DAEMONS[0], old, new)
                self.assertIn(new.split('=')[-1] or new[:-1], ' '.join(said))

    def test_options_are_known(self):
        """What a unit starts is understood by the program."""
        for program in DAEMONS:
            with self.subTest(program=program):
                text = (SOURCE / f'{program}.service').read_text()
                start = text.split('ExecStart=')[1].split('\nRestart')[0]
                used = set(OPTION.findall(re.sub(r'\S*/\S*', '', start)))
                self.assertTrue(used)
                self.assertLessEqual(used, options_of_help(help_of(program)))


if __name__ == '__main__':
    unittest.main()
