# SPDX-License-Identifier: GPL-2.0-or-later
"""The Makefile with scripts that only write down that they ran."""
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[2] / 'Makefile'
STUB = '#!/bin/sh\necho "${0##*/} $*" >> calls\n'


@unittest.skipUnless(shutil.which('make'), 'make is not installed')
class Makefile(unittest.TestCase):
    def setUp(self):
        self.root = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        shutil.copy(MAKEFILE, self.root)
        for name in ('scripts/bootstrap', 'scripts/fetch-base',
                     'scripts/series', 'scripts/build', 'scripts/install',
                     'scripts/fuzz', 'tests/guest/demo.py'):
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(STUB)
            path.chmod(0o755)

    def make(self, *args):
        """Run make; return its exit code, what it said and what it called."""
        (self.root / 'calls').write_text('')
        done = subprocess.run(['make', '-s', *args], cwd=self.root, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        return (done.returncode, done.stdout,
                (self.root / 'calls').read_text().splitlines())

    def test_rebase_without_a_place_does_nothing(self):
        for target in 'rehearse', 'rebase':
            code, said, calls = self.make(target, 'TO=')
            self.assertEqual((code, calls), (2, []))
            self.assertIn(f'make {target} TO=', said)

    def test_rehearse(self):
        code, said, calls = self.make('rehearse', 'TO=v1')
        self.assertEqual(code, 0, said)
        self.assertEqual(calls, ['bootstrap build', 'fetch-base ',
                                 'series prepare', 'series rehearse v1'])

    def test_install_only_installs(self):
        self.assertEqual(self.make('install', 'PREFIX=/p', 'DESTDIR=/d')[2],
                         ['install /p /d'])

    def test_fuzz(self):
        code, said, calls = self.make('fuzz')
        self.assertEqual((code, calls), (2, []))
        self.assertIn('SECONDS=', said)
        self.assertEqual(self.make('fuzz', 'SECONDS=60')[2], [
            'bootstrap build fuzz', 'build fuzz', 'fuzz 60'])
        self.assertEqual(
            self.make('fuzz', 'SECONDS=5', 'SEED=3', 'ENTRIES=a b')[2][-1],
            'fuzz --seed 3 5 a b')

    def test_run(self):
        self.assertEqual(self.make('run')[2], [
            'bootstrap build guest', 'build series', 'demo.py '])


if __name__ == '__main__':
    unittest.main()
