# SPDX-License-Identifier: GPL-2.0-or-later
"""libzpipe as its users find it: installed, by pkg-config, as documented."""
import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / 'src' / 'subprojects' / 'libzpipe'
PAGE = ROOT / 'docs' / 'zpipe.rst'


def meson():
    """QEMU's own, else one that is installed."""
    built = ROOT / 'build' / 'out' / 'pyvenv' / 'bin' / 'meson'
    return str(built) if built.exists() else shutil.which('meson')


def need(program):
    if not program or not shutil.which(program):
        raise unittest.SkipTest(f'there is no {program or "meson"} here')


class Installed(unittest.TestCase):
    """An installed library and command, in a directory of their own."""

    @classmethod
    def setUpClass(cls):
        for program in meson(), 'ninja', 'cc', 'pkg-config':
            need(program)
        cls.tmp = Path(tempfile.mkdtemp(prefix='libzpipe-'))
        cls.addClassCleanup(shutil.rmtree, cls.tmp)
        cls.prefix = cls.tmp / 'prefix'
        cls.call(meson(), 'setup', '-Dtests=disabled', '--prefix',
                 cls.prefix, '--libdir', 'lib', cls.tmp / 'out', SOURCE)
        cls.call(meson(), 'install', '-C', cls.tmp / 'out')
        cls.env = dict(
            os.environ, LD_LIBRARY_PATH=str(cls.prefix / 'lib'),
            PKG_CONFIG_PATH=str(cls.prefix / 'lib' / 'pkgconfig'))

    @classmethod
    def call(cls, *command, **options):
        done = subprocess.run([str(x) for x in command], text=True,
                              stdout=subprocess.PIPE, timeout=300,
                              stderr=subprocess.STDOUT, check=False, **options)
        if done.returncode:
            raise AssertionError(f'{command}: {done.stdout}')
        return done.stdout

    def start(self, *command, **options):
        process = subprocess.Popen([str(x) for x in command], env=self.env,
                                   stdout=subprocess.PIPE, **options)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def listening(self, path):
        """Wait until somebody listens at @path."""
        for _ in range(500):
            with open('/proc/net/unix', encoding='ascii') as table:
                # state: 01 is a socket that listens
                if any(line.split()[-1] == str(path) and
                       line.split()[3] == '00010000' for line in table):
                    return
            time.sleep(0.02)
        self.fail(f'nobody listens at {path}')

    def documented_program(self):
        """The program that the page shows, line by line."""
        text = PAGE.read_text(encoding='utf-8')
        found = re.search(r'^\.\. literalinclude:: (\S+hello\.c)$', text,
                          re.M)
        self.assertTrue(found, 'the page shows no program')
        return (PAGE.parent / found.group(1)).resolve()

    def test_program_of_the_page(self):
        source = self.documented_program()
        lines = source.read_text(encoding='utf-8').splitlines()
        self.assertLessEqual(len(lines), 30)
        self.assertEqual([x for x in lines if 'zpipe-' in x], [],
                         'it uses a header that is not public')
        flags = self.call('pkg-config', '--cflags', '--libs', 'libzpipe',
                          env=self.env).split()
        program, path = self.tmp / 'hello', self.tmp / 'socket'
        # out of the source's directory: nothing but what is installed
        copy = self.tmp / 'program.c'
        shutil.copy(source, copy)
        self.call('cc', '-Wall', '-Wextra', '-Werror', '-o', program, copy,
                  *flags, env=self.env)
        server = self.start(program, path)
        self.listening(path)
        self.call(program, path, env=self.env)
        self.assertEqual(server.communicate(timeout=20)[0], b'hello\n')
        self.assertEqual(server.returncode, 0)

    def test_file_through_the_command(self):
        zpipe, path = self.prefix / 'bin' / 'zpipe', self.tmp / 'pipe'
        original, copy = self.tmp / 'original', self.tmp / 'copy'
        original.write_bytes(os.urandom(3 << 20) + b'end')
        with open(copy, 'wb') as output, open(os.devnull, 'rb') as nothing:
            server = subprocess.Popen([zpipe, 'listen', path], stdin=nothing,
                                      stdout=output)
            self.addCleanup(server.kill)
            self.listening(path)
            with open(original, 'rb') as data:
                self.call(zpipe, 'connect', path, stdin=data)
            self.assertEqual(server.wait(20), 0)
        self.assertTrue(copy.read_bytes() == original.read_bytes())

    def test_closed_standard_descriptors(self):
        """Messages do not get into the protocol's own descriptors."""
        zpipe, path = self.prefix / 'bin' / 'zpipe', self.tmp / 'pipe'
        output = self.tmp / 'output'
        server = self.start('sh', '-c', 'exec "$0" listen -v -r "$1" '
                            '>"$2" <&- 2>&-', zpipe, path, output)
        self.listening(path)
        subprocess.run(['sh', '-c', 'echo hello | exec "$0" connect -v -s "$1" '
                        '>&- 2>&-', zpipe, path], check=True, timeout=60)
        self.assertEqual(server.wait(20), 0)
        self.assertEqual(output.read_bytes(), b'hello\n')

    def test_options_of_the_command(self):
        """What does nothing is no option."""
        zpipe = self.prefix / 'bin' / 'zpipe'
        done = subprocess.run([zpipe, 'connect', '--spin=5', '/nonexistent/x'],
                              text=True, stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn('spin', done.stderr)


if __name__ == '__main__':
    unittest.main()
