# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/series check, stat and series: each item can fail."""
import json
import os
import unittest
from unittest import mock

from support import SPDX, Project, message


class Check(Project):
    def test_good_series(self):
        text = self.run_check()
        self.assertEqual(text.count('\nok '), 8)
        self.assertTrue(text.startswith('1..8\n'))
        self.assertNotIn('not ok', text)
        self.assertNotIn('SKIP', text)

    def test_writes_nothing(self):
        before = self.snapshot('src', 'tests', 'patches', 'build/tree')
        tip = self.tip()
        self.run_check()
        self.assertEqual(before, self.snapshot('src', 'tests', 'patches',
                                               'build/tree'))
        self.assertEqual(self.tip(), tip)
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_works_beside_a_dirty_tree(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.run_check()

    def item(self, number, *words):
        text = self.run_check(1)
        lines = [line for line in text.split('\n')
                 if line.startswith(f'not ok {number} ')]
        self.assertEqual(len(lines), 1, text)
        for word in words:
            self.assertIn(word, text)
        return text

    def test_unreadable_patch(self):
        self.put('patches/0003-x.patch', b'nonsense')
        self.item(1, '0003-x.patch', 'not tried')

    def test_two_owners(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', '\n---\n',
                     '\nFiles: system/counter.c\n---\n')
        self.item(1, 'one owner')

    def test_orphan(self):
        self.put('src/hw/orphan.c', SPDX)
        self.item(2, 'src/hw/orphan.c is named by no patch')

    def test_missing_own_file(self):
        os.unlink(self.path('src/system/counter.c'))
        self.item(2, 'there is no src/system/counter.c')

    def test_patch_that_does_not_apply(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', '-    return x', '-    return y')
        text = self.item(3, name, 'not tried')
        self.assertIn('not ok 7', text)

    def test_byte_that_export_would_not_write(self):
        name = list(self.patches())[1]
        self.put(f'patches/{name}', self.patches()[name] + b'-- \n2.39\n')
        self.item(4, f'{name} would change')

    def test_file_name_that_export_would_not_write(self):
        name = list(self.patches())[1]
        os.rename(self.path(f'patches/{name}'),
                  self.path('patches/0002-other.patch'))
        self.item(4, f'{name} would be written',
                  '0002-other.patch would be removed')

    def message_fails(self, text, *words):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.commit(text)
        self.ok('export')
        self.item(5, *words)

    def test_subject_form(self):
        self.message_fails(message('Be mine'), 'subsystem: imperative')

    def test_subject_tense(self):
        self.message_fails(message('vl: added a line'), '"added"')

    def test_subject_stop(self):
        self.message_fails(message('vl: be mine.'), 'full stop')

    def test_subject_width(self):
        self.message_fails(message('vl: ' + 'x' * 73), '77 columns')

    def test_no_status(self):
        self.message_fails('vl: be mine\n\nWhy.\n',
                           'has 0 Upstream-Status: trailers')

    def test_status_that_is_none(self):
        self.message_fails(message('vl: be mine').replace(
            'Inappropriate', 'Improper'), 'vocabulary')

    def test_sign_off(self):
        self.message_fails(message('vl: be mine') +
                           'Signed-off-by: x <x@y.invalid>\n',
                           'Signed-off-by')

    def test_files_outside_the_trailers(self):
        self.message_fails(message('vl: be mine', body='Files: x.c\nWhy.'),
                           'it is no trailer')

    def test_checkpatch_finding_in_an_own_file(self):
        self.replace('src/system/counter.c', 'line_3;', 'BADSTYLE;')
        text = self.item(6, '0001-system-add-a-counter.patch: line ',
                         'WARNING: a bad style here')
        self.assertEqual(self.run_check(1), text)

    def test_checkpatch_exception(self):
        self.replace('src/system/counter.c', 'line_3;', 'BADSTYLE;')
        self.put('patches/checkpatch.ignore',
                 '# slug "part of the text" reason\n'
                 'system-add-a-counter "a bad style" known to be good\n')
        self.run_check()

    def test_checkpatch_exception_of_another_patch(self):
        self.replace('src/system/counter.c', 'line_3;', 'BADSTYLE;')
        self.put('patches/checkpatch.ignore',
                 'memory-use-the-counter "a bad style" known to be good\n')
        self.item(6, 'a bad style here', 'excepts nothing')

    def test_checkpatch_exception_without_reason(self):
        self.put('patches/checkpatch.ignore', 'memory-use-the-counter "bad"\n')
        self.item(6, 'checkpatch.ignore:1')

    def test_checkpatch_that_crashes(self):
        self.put('build/tree/scripts/checkpatch.pl', 'die "no luck\\n";\n')
        self.item(6, 'no luck')
        self.put('build/tree/scripts/checkpatch.pl', 'exit(3);\n')
        self.item(6, 'status 3')

    def test_no_perl_is_a_skip_with_a_reason(self):
        with mock.patch('serieslib.check.shutil.which', return_value=None):
            self.assertIn('ok 6 checkpatch # SKIP perl is not installed',
                          self.run_check())

    def test_git_am_that_gives_another_tree(self):
        import serieslib.commands as commands
        real = commands.folded_mails

        def altered(series, complete):
            mails = real(series, complete)
            return {name: data.replace(b'line_9;', b'line_ten;')
                    for name, data in mails.items()}

        with mock.patch('serieslib.commands.folded_mails', altered):
            self.item(7, 'another tree')

    def test_git_am_that_stops(self):
        import serieslib.commands as commands
        real = commands.folded_mails

        def altered(series, complete):
            mails = real(series, complete)
            return {name: data.replace(b'-    return', b'-   return')
                    for name, data in mails.items()}

        with mock.patch('serieslib.commands.folded_mails', altered):
            self.item(7, 'git am: ')

    def test_budget(self):
        lines = ''.join(f'int hook_{n};\n' for n in range(100))
        self.replace('build/tree/system/vl.c', 'int vl', lines + 'int vl')
        self.commit(message('vl: hook a lot'))
        self.ok('export')
        self.item(8, 'the budget is 20 %')

    def test_maintainers_count_as_hook(self):
        lines = ''.join(f'F: file{n}\n' for n in range(100))
        self.put('build/tree/MAINTAINERS', lines)
        self.commit(message('MAINTAINERS: add us'))
        self.ok('export')
        self.item(8, 'the budget is 20 %')


class Stat(Project):
    def test_table(self):
        text = self.ok('stat')
        rows = {line.split()[0]: line.split()[1:]
                for line in text.split('\n') if line}
        self.assertEqual(rows['0001-system-add-a-counter.patch'],
                         ['1', '0', '1', '3', '205'])
        self.assertEqual(rows['0002-memory-use-the-counter.patch'],
                         ['1', '1', '1', '0', '0'])
        self.assertEqual(rows['total'], ['2', '1', '2', '3', '205'])
        self.assertIn('3 of 208, 1.4 %', text)

    def test_json(self):
        data = json.loads(self.ok('stat', '--json'))
        self.assertEqual(data['total']['hook_lines'], 3)
        self.assertEqual(data['total']['own_lines'], 205)
        self.assertEqual(len(data['patches']), 2)

    def test_empty_series(self):
        for name in self.patches():
            os.unlink(self.path(f'patches/{name}'))
        for name in ('src', 'tests'):
            os.rename(self.path(name), os.path.join(self.home, name))
        self.assertIn('0 of 0', self.ok('stat'))
        self.run_check()


class Mail(Project):
    def test_complete_patches(self):
        self.ok('series')
        names = sorted(os.listdir(self.path('build/series')))
        self.assertEqual(names, list(self.patches()))
        first = self.get(f'build/series/{names[0]}').decode()
        self.assertIn('[PATCH 1/2] system: add a counter', first)
        self.assertIn('diff --git a/system/counter.c', first)
        before = self.snapshot('build/series')
        self.ok('mail')
        self.assertEqual(self.snapshot('build/series'), before)

    def test_patch_that_is_gone_is_removed(self):
        self.ok('series')
        os.unlink(self.path(f'patches/{list(self.patches())[1]}'))
        self.put('build/series/notes', b'mine')
        self.ok('series')
        self.assertEqual(sorted(os.listdir(self.path('build/series'))),
                         ['0001-system-add-a-counter.patch', 'notes'])


if __name__ == '__main__':
    unittest.main()
