# SPDX-License-Identifier: GPL-2.0-or-later
"""The test runner counts right, ends what hangs, and leaves nothing behind."""
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from as_module import load


def is_alive(pid):
    """Tell if a process exists and is no zombie."""
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    except FileNotFoundError:
        return False
    return state[0] != 'Z'


class Check(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.check = load('check')
        self.check.REPORT = self.folder
        self.tally = self.check.Tally('test')

    def run_logged(self, script, **options):
        with contextlib.redirect_stdout(io.StringIO()):
            return self.check.run_logged(self.tally, ['sh', '-c', script],
                                         **options)

    def wait_for(self, path):
        deadline = time.monotonic() + 20
        while not path.is_file() or not path.read_text().strip():
            self.assertLess(time.monotonic(), deadline, f'no {path}')
            time.sleep(0.02)
        return path.read_text().strip()

    def assert_ends(self, pid):
        deadline = time.monotonic() + 20
        while is_alive(pid):
            self.assertLess(time.monotonic(), deadline, f'{pid} is alive')
            time.sleep(0.02)

    def test_output_and_exit_code(self):
        code, lines = self.run_logged('echo a; echo b >&2; exit 3')
        self.assertEqual((code, sorted(lines)), (3, ['a', 'b']))
        self.assertIn('a\n', self.tally.log.read_text())

    def test_silent_command_is_ended_with_its_children(self):
        pid_file = self.folder / 'pid'
        code, lines = self.run_logged(
            f'sleep 300 & echo $! > {pid_file}; wait', limit_s=1)
        self.assertNotEqual(code, 0)
        self.assertIn('ended after', lines[-1])
        self.assert_ends(int(self.wait_for(pid_file)))

    def test_interruption_ends_the_children(self):
        pid_file = self.folder / 'pid'
        runner = ('import signal, sys\n'
                  f'sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
                  'from pathlib import Path\n'
                  'from as_module import load\n'
                  'check = load("check")\n'
                  f'check.REPORT = Path({str(self.folder)!r})\n'
                  'signal.signal(signal.SIGTERM, signal.default_int_handler)\n'
                  'check.run_logged(check.Tally("x"), ["sh", "-c", '
                  f'"sleep 300 & echo $! > {pid_file}; wait"])\n')
        with subprocess.Popen([sys.executable, '-B', '-c', runner],
                              stderr=subprocess.DEVNULL) as process:
            pid = int(self.wait_for(pid_file))
            os.kill(process.pid, signal.SIGTERM)
            self.assertNotEqual(process.wait(40), 0)
        self.assert_ends(pid)

    def test_closing_line(self):
        self.tally.add({'passed': 3, 'notes': ['f: at the second try'],
                        'failed': [{'test': 'a', 'why': 'broken'}],
                        'skipped': [{'test': 'b', 'reason': 'no disk'}]})
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = self.check.close([self.tally])
        lines = out.getvalue().splitlines()
        self.assertEqual(code, 1)
        self.assertEqual(lines[-1], '3 passed, 1 failed, 1 skipped')
        self.assertIn('skipped: test/b: no disk', lines)
        self.assertIn('note: test/f: at the second try', lines)
        self.assertTrue(any(x.startswith('FAILED: test/a: broken')
                            for x in lines))

    def test_no_failure_is_success(self):
        self.tally.passed = 1
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(self.check.close([self.tally]), 0)

    def test_warnings_of_touched_files_only(self):
        log = ('[1/2] Compiling C object a.o\n'
               '../tree/include/a.h:1:2: warning: ‘struct A’ declared inside '
               'parameter list will not be visible outside\n'
               '../tree/b.c:3:4: warning: upstream has it [-Wint-conversion]\n'
               '../tree/block/c.c:5:6: warning: odd [-Wodd]\n'
               '../tree/block/c.c:5:6: note: declared here\n')
        refused, rest = self.check.warnings_of(log,
                                               {'include/a.h', 'block/c.c'})
        self.assertEqual(len(refused), 1)
        self.assertIn('include/a.h: warning: ‘struct A’', refused[0])
        self.assertEqual(rest, ['block/c.c: warning: odd [-Wodd]'])
        self.assertEqual(self.check.warnings_of(log, {'d.c'}), ([], []))

    def test_folder_without_tests_fails(self):
        empty = self.folder / 'empty'
        empty.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            self.check.unittests(self.tally, str(empty))
        self.assertEqual([f[1] for f in self.tally.failed],
                         ['there is no test in it'])

    def test_python_tests_are_counted(self):
        tests = self.folder / 'tests'
        tests.mkdir()
        (tests / 'test_x.py').write_text(
            'import unittest\n'
            'class T(unittest.TestCase):\n'
            '    def test_good(self): pass\n'
            '    def test_bad(self): self.fail("because")\n'
            '    def test_error(self): raise ValueError("odd")\n'
            '    def test_not(self): self.skipTest("no disk")\n'
            '    def test_sub(self):\n'
            '        for i in range(2):\n'
            '            with self.subTest(i=i): self.assertEqual(i, 0)\n')
        with contextlib.redirect_stdout(io.StringIO()):
            self.check.unittests(self.tally, str(tests))
        self.assertEqual(self.tally.passed, 1)
        self.assertEqual(sorted(f[1] for f in self.tally.failed),
                         ['1 != 0', 'because', 'odd'])
        self.assertEqual([s[1] for s in self.tally.skipped], ['no disk'])

    def test_crash_of_a_tier_is_one_failure(self):
        def tier(_):
            raise RuntimeError('no luck')
        self.check.TIERS = {'bad': (tier, 'a moment')}
        with contextlib.redirect_stdout(io.StringIO()):
            tally = self.check.run_tier('bad')
        self.assertEqual([f[1] for f in tally.failed],
                         ['RuntimeError: no luck'])

    def test_tier_without_tests_fails(self):
        self.check.TIERS = {'none': (lambda tally: None, 'a moment')}
        with contextlib.redirect_stdout(io.StringIO()):
            tally = self.check.run_tier('none')
        self.assertEqual([f[1] for f in tally.failed], ['ran no test at all'])


if __name__ == '__main__':
    unittest.main()
