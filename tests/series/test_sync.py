# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/series sync: own files are edited on either side."""
import os
import unittest

from support import SPDX, Project, message

HERE = 'src/system/counter.c'
THERE = 'build/tree/system/counter.c'


class Sync(Project):
    def test_changed_here(self):
        self.replace(HERE, 'line_3', 'line_x')
        self.ok('sync')
        self.assertEqual(self.get(HERE), self.get(THERE))
        self.assertIn(b'line_x', self.get(THERE))

    def test_changed_in_the_tree(self):
        self.replace(THERE, 'line_3', 'line_x')
        self.assertIn(f'copied to {HERE}', self.ok('sync'))
        self.assertIn(b'line_x', self.get(HERE))
        self.assertEqual(self.get(HERE), self.get(THERE))

    def test_changed_on_both_sides(self):
        self.replace(HERE, 'line_3', 'line_x')
        self.replace(THERE, 'line_4', 'line_y')
        for command in ('sync', 'apply', 'prepare', 'export'):
            self.refuses(command, naming=[HERE, THERE])

    def test_a_conflict_in_one_file_keeps_the_others_back(self):
        self.replace(HERE, 'line_3', 'line_x')
        self.replace(THERE, 'line_4', 'line_y')
        self.replace('tests/unit/test-counter.c', 'test', 'other')
        self.refuses('sync', naming=HERE)

    def test_same_change_on_both_sides(self):
        for name in (HERE, THERE):
            self.replace(name, 'line_3', 'line_x')
        self.ok('sync')
        self.replace(HERE, 'line_x', 'line_z')
        self.ok('sync')
        self.assertIn(b'line_z', self.get(THERE))

    def test_test_files_live_under_tests(self):
        self.replace('build/tree/tests/unit/test-counter.c', 'test', 'other')
        self.put('tests/qtest/new-test.c', SPDX)
        self.ok('sync')
        self.assertIn(b'other', self.get('tests/unit/test-counter.c'))
        self.assertTrue(self.exists('build/tree/tests/qtest/new-test.c'))

    def test_test_file_under_src(self):
        self.put('src/tests/unit/x.c', SPDX)
        self.refuses('sync', naming=['src/tests/unit/x.c',
                                     'belongs in tests/unit/x.c'])

    def test_new_file_here(self):
        self.put('src/hw/new.c', SPDX)
        text = self.ok('sync')
        self.assertIn('owned by no patch yet: src/hw/new.c', text)
        self.assertEqual(self.get('build/tree/hw/new.c'), SPDX.encode())

    def test_new_file_in_the_tree_is_a_hint_only(self):
        self.put('build/tree/hw/new.c', SPDX)
        self.assertIn('hint: new in build/tree and in no commit: hw/new.c',
                      self.ok('sync'))
        self.assertFalse(self.exists('src/hw/new.c'))

    def test_ignored_file_in_the_tree_is_no_hint(self):
        self.put('build/tree/hw/x.o', b'x')
        self.assertNotIn('hint', self.ok('sync'))

    def test_own_file_that_upstream_ignores(self):
        self.put('src/hw/hidden.h', SPDX)
        self.ok('sync')
        self.replace('build/tree/hw/hidden.h', '*/', 'too */')
        self.ok('sync')
        self.assertIn(b'too', self.get('src/hw/hidden.h'))

    def test_deleted_here(self):
        self.put('src/hw/sub/new.c', SPDX)
        self.ok('sync')
        os.unlink(self.path('src/hw/sub/new.c'))
        self.ok('sync')
        self.assertFalse(self.exists('build/tree/hw/sub'))
        self.assertTrue(self.exists('build/tree/hw'))

    def test_deleted_here_and_changed_there(self):
        os.unlink(self.path(HERE))
        self.replace(THERE, 'line_3', 'line_x')
        self.refuses('sync', naming=HERE)

    def test_deleted_there_and_changed_here(self):
        os.unlink(self.path(THERE))
        self.replace(HERE, 'line_3', 'line_x')
        self.refuses('sync', naming=HERE)

    def test_deleted_there_is_deleted_here_but_saved(self):
        data = self.get(HERE)
        os.unlink(self.path(THERE))
        text = self.ok('sync')
        self.assertFalse(self.exists(HERE))
        ref = text.split(' as ')[1].split()[0]
        self.assertEqual(self.git('show', f'{ref}:system/counter.c').encode(),
                         data.rstrip())

    def test_reset_in_the_tree_does_not_undo_edits_here(self):
        """git checkout, stash and clean bring the tree back; no edit."""
        self.replace(HERE, 'line_3', 'line_x')
        self.put('src/hw/new.c', SPDX)
        self.ok('sync')
        self.git('reset', '-q', '--hard')
        self.git('clean', '-q', '-f', '-d')
        text = self.ok('sync')
        self.assertIn('restored build/tree/system/counter.c', text)
        self.assertIn(b'line_x', self.get(HERE))
        self.assertIn(b'line_x', self.get(THERE))
        self.assertTrue(self.exists('build/tree/hw/new.c'))

    def test_dropped_commit_does_not_delete_own_files(self):
        self.git('rebase', '-q', '--onto', 'series~2', 'series~1', 'series')
        self.refuses('sync', naming=['system/counter.c', 'left branch'])
        self.refuses('prepare', naming='left branch')

    def test_dropped_commit_is_exported_when_asked(self):
        self.git('rebase', '-q', '--onto', 'series~2', 'series~1', 'series')
        text = self.ok('export')
        self.assertIn('removed patches/0001-system-add-a-counter.patch', text)
        self.assertIn('refs/hotpath/saved', text)
        self.assertFalse(self.exists(HERE))
        self.assertEqual(list(self.patches()),
                         ['0001-memory-use-the-counter.patch'])
        self.assertApplies()

    def test_mode_is_carried(self):
        os.chmod(self.path(HERE), 0o755)
        self.ok('sync')
        self.assertTrue(os.access(self.path(THERE), os.X_OK))
        self.ok('apply')
        os.chmod(self.path(THERE), 0o644)
        self.ok('sync')
        self.assertFalse(os.access(self.path(HERE), os.X_OK))

    def test_symbolic_link_is_carried(self):
        os.symlink('counter.c', self.path('src/system/alias.c'))
        self.ok('sync')
        self.assertEqual(os.readlink(self.path('build/tree/system/alias.c')),
                         'counter.c')
        os.unlink(self.path('build/tree/system/alias.c'))
        os.symlink('vl.c', self.path('build/tree/system/alias.c'))
        self.ok('sync')
        self.assertEqual(os.readlink(self.path('src/system/alias.c')), 'vl.c')

    def test_directory_in_place_of_a_file(self):
        os.unlink(self.path(THERE))
        self.put(f'{THERE}/inner', b'x')
        self.refuses('sync', naming=HERE)

    def test_files_of_editors_are_no_own_files(self):
        for name in ('counter.c~', '.counter.c.swp', 'counter.c.orig',
                     'counter.c.rej', '__pycache__/x.pyc', '#counter.c#'):
            self.put(f'src/system/{name}', b'x')
        self.assertNotIn('owned by no patch', self.ok('sync'))
        self.assertFalse(self.exists('build/tree/system/counter.c~'))

    def test_name_with_a_blank(self):
        self.put('src/hw/two words.c', SPDX)
        self.refuses('sync', naming=['src/hw/two words.c', 'rename'])

    def test_content_is_carried_to_the_byte(self):
        for number, data in enumerate((b'a\r\nb\r\n', b'no newline', b'',
                                       b'$Id$\n', bytes(range(256)),
                                       b'tail \t\n')):
            name = f'hw/odd{number}.c'
            self.put(f'src/{name}', data)
        self.ok('sync')
        for number in range(6):
            name = f'hw/odd{number}.c'
            self.assertEqual(self.get(f'src/{name}'),
                             self.get(f'build/tree/{name}'))
        names = [f'hw/odd{n}.c' for n in range(6)]
        self.commit(message('hw: add odd files', *names))
        self.ok('export')
        self.assertApplies()
        self.assertIn('ok 7', self.run_check())

    def test_touched_but_equal_is_not_copied(self):
        before = self.snapshot('build/tree')
        os.utime(self.path(HERE))
        self.ok('sync')
        self.assertEqual(self.snapshot('build/tree'), before)


if __name__ == '__main__':
    unittest.main()
