# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison of upstream's suites finds what it must find."""
import contextlib
import io
import tempfile
import unittest
from pathlib import Path

from as_module import load


def entry(result='OK', **subtests):
    made = {'result': result, 'seconds': 1,
            'subtests': {f'/{k}': v for k, v in subtests.items()}}
    if result == 'SKIP':
        made['reason'] = 'because'
    elif result != 'OK':
        made.update(stdout='out', stderr='err')
    return made


class Suites(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.suites = load('upstream-suites')
        self.folder = Path(folder.name)
        known = self.folder / 'known'
        known.write_text('# comment\n\nbad  -  broken here\n'
                         'part  /b  known part\n')
        self.suites.KNOWN = known
        self.suites.ROOT = self.folder
        self.suites.report_dir = self.report_dir

    def report_dir(self, *parts):
        path = self.folder.joinpath('report', *parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def judge(self, base, series):
        verdict = self.suites.Verdict('test')
        with contextlib.redirect_stdout(io.StringIO()):
            self.suites.judge(verdict, base, series)
        return verdict

    def failures(self, base, series):
        return [(f['test'], f['why']) for f in self.judge(base, series).failed]

    def test_tap(self):
        text = ('# noise\n1..5\nok 1 /a\nnot ok 2 /b\n'
                'ok 3 /c # SKIP no socat\nok 4 /d/e f\nok 5 - /g\n')
        self.assertEqual(self.suites.subtests_of(text), {
            '/a': 'ok', '/b': 'fail', '/c': 'skip: no socat',
            '/d/e f': 'ok', '/g': 'ok'})

    def test_skip_reason(self):
        reason = self.suites.skip_reason
        self.assertEqual(reason('1..0 # SKIP no numa\n', ''), 'no numa')
        self.assertEqual(reason('1..0\n', '# skip unsupported aes\n'),
                         'unsupported aes')
        self.assertEqual(reason('ok 1 /x # SKIP no socat\n', ''), 'no socat')
        self.assertIn('no case', reason('1..0\n', ''))

    def test_equal(self):
        tests = {'t': entry(a='ok', b='ok'), 'u': entry()}
        verdict = self.judge(tests, tests)
        self.assertEqual((verdict.passed, verdict.failed), (3, []))

    def test_changes_fail(self):
        base = {'t': entry(a='ok', b='ok')}
        for series, why in (
                ({}, 'absent from the series'),
                ({'t': entry('ERROR', a='ok')}, 'OK on the base, ERROR'),
                ({'t': entry(a='ok', b='fail')}, '/b (ok -> fail)'),
                ({'t': entry(a='ok')}, '/b (ok -> absent)'),
                ({'t': entry(a='skip: x', b='ok')}, '/a (ok -> skip: x)')):
            with self.subTest(why=why):
                failures = self.failures(base, series)
                self.assertEqual(len(failures), 1)
                self.assertIn(why, failures[0][1])

    def test_lost_race_is_no_change(self):
        lost = {'t': entry(a='skip: Failed to cancel the migration', b='ok')}
        won = {'t': entry(a='ok', b='ok')}
        self.assertEqual(self.failures(lost, won), [])
        self.assertEqual(self.failures(won, lost), [])
        self.assertEqual(len(self.failures(lost, {'t': entry(a='fail')})), 1)

    def test_new_subtest_is_welcome(self):
        verdict = self.judge({'t': entry(a='ok')}, {'t': entry(a='ok', n='ok')})
        self.assertEqual((verdict.passed, verdict.failed), (2, []))

    def test_new_subtest_that_fails(self):
        self.assertEqual(len(self.failures(
            {'t': entry(a='ok')}, {'t': entry(a='ok', n='fail')})), 1)

    def test_new_test(self):
        self.assertEqual(self.failures({}, {'n': entry(a='ok')}), [])
        self.assertEqual(self.failures({}, {'n': entry('FAIL', a='fail')}),
                         [('n', 'new test: FAIL')])

    def test_base_failure_must_be_listed(self):
        bad = entry('ERROR', a='ok')
        self.assertEqual(len(self.failures({'x': bad}, {'x': bad})), 1)
        verdict = self.judge({'bad': bad}, {'bad': bad})
        self.assertEqual(verdict.failed, [])
        self.assertIn('broken here', verdict.skipped[0]['reason'])

    def test_known_subtest(self):
        part = entry(a='ok', b='known failure')
        verdict = self.judge({'part': part}, {'part': part})
        self.assertEqual((verdict.passed, verdict.failed), (1, []))
        self.assertIn('known part', verdict.skipped[0]['reason'])

    def test_skips_are_named(self):
        tests = {'t': entry('SKIP'), 'u': entry(a='ok', b='skip: no disk')}
        verdict = self.judge(tests, tests)
        self.assertEqual({s['test']: s['reason'] for s in verdict.skipped},
                         {'t': 'because', 'u/b': 'no disk'})

    def direct(self, *runs):
        """Run a listed test directly; runs are (code, stdout, stderr)."""
        answers = list(runs)
        self.suites.run_program = lambda *args: answers.pop(0)
        self.suites.LONG = self.suites.KNOWN.with_name('long')
        self.suites.LONG.write_text('part  /a  slow\n')
        return self.suites.run_directly('base', {'name': 'part'})

    def test_direct_run(self):
        result = self.direct((0, 'ok 1 /a\n', ''), (1, 'not ok 1 /b\n', ''))
        self.assertEqual(result['result'], 'OK')
        self.assertEqual(result['subtests'], {'/a': 'ok',
                                              '/b': 'known failure'})

    def test_direct_run_without_a_subtest_fails(self):
        result = self.direct((0, '1..0\n', ''), (1, '', ''))
        self.assertEqual(result['result'], 'ERROR')
        self.assertIn('no subtest ran', result['stderr'])

    def test_listed_subtest_that_does_not_exist_fails(self):
        result = self.direct((0, 'ok 1 /a\n', ''), (0, '1..0\n', ''))
        self.assertEqual(result['result'], 'FAIL')

    def kept_key(self, results):
        self.suites.kept_base = lambda: None
        self.suites.build = lambda *args: None
        self.suites.run_suites = lambda *args: results
        self.suites.repeat_failures = lambda variant, found: found
        self.suites.base_key = lambda: 'key'
        keys = []
        self.suites.save = lambda variant, found, key: keys.append(key)
        self.suites.base_results()
        return keys

    def test_unexplained_failure_of_the_base_is_not_kept(self):
        self.assertEqual(self.kept_key({'t': entry()}), ['key'])
        self.assertEqual(self.kept_key({'bad': entry('ERROR')}), ['key'])
        self.assertEqual(self.kept_key({'t': entry('TIMEOUT')}), [None])

    def test_own_tests_are_not_repeated(self):
        base = {'up': entry(a='ok')}
        self.suites.base_results = lambda: base
        self.suites.build = lambda *args: None
        self.suites.run_suites = lambda *args: {'up': entry('ERROR'),
                                                'own': entry('ERROR')}
        repeated = []

        def repeat(variant, results, names):
            repeated.extend(names)
            return results
        self.suites.repeat_some = repeat
        self.suites.LONG = self.suites.KNOWN
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(self.suites.compare(), 1)
        self.assertEqual(repeated, ['up'])

    def test_flaky_is_told(self):
        shaky = {**entry(a='ok'), 'flaky': 1}
        verdict = self.judge({'t': entry(a='ok')}, {'t': shaky})
        self.assertEqual(verdict.notes,
                         ['t: failed, then passed at repetition 1'])

    def test_bad_list(self):
        self.suites.KNOWN.write_text('only two\n')
        with self.assertRaisesRegex(self.suites.SetupError, 'line 1'):
            self.suites.known_failures()


if __name__ == '__main__':
    unittest.main()
