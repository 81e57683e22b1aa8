# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/series rehearse and rebase: the series on another base."""
import json
import os
import shutil
import subprocess
import unittest
from unittest import mock

from support import BASE, Project, message


class Other(Project):
    """A newer upstream beside the project, in self.other."""

    def setUp(self):
        super().setUp()
        self.other = os.path.join(self.home, 'qemu-11')
        shutil.copytree(self.path('build/base/tree'), self.other,
                        symlinks=True)
        self.upstream('VERSION', '10.2.2', '11.0.0')

    def upstream(self, name, old, new):
        path = os.path.join(self.other, name)
        with open(path) as stream:
            text = stream.read()
        self.assertIn(old, text)
        with open(path, 'w') as out:
            out.write(text.replace(old, new, 1))

    def conflict(self):
        """Upstream changes the line that patch 2 changes."""
        self.upstream('system/memory.c', 'x + 7;', 'x + 77;')

    def report(self, name='qemu-11'):
        return json.loads(self.get(f'build/rehearse-{name}.json'))

    def third(self):
        self.replace('build/tree/system/vl.c', 'int last', 'int hooked')
        self.commit(message('vl: hook the end'))
        self.ok('export')


class Rehearse(Other):
    def unchanged(self, status, *args):
        """Rehearse; branch, base and files must stay as they are."""
        before = self.snapshot('src', 'tests', 'patches', 'build/tree')
        refs = self.git('for-each-ref'), self.git('symbolic-ref', 'HEAD')
        if status:
            text = self.fails('rehearse', *args)
        else:
            text = self.ok('rehearse', *args)
        self.assertEqual(before, self.snapshot('src', 'tests', 'patches',
                                               'build/tree'))
        self.assertEqual((self.git('for-each-ref'),
                          self.git('symbolic-ref', 'HEAD')), refs)
        self.assertEqual(self.git('status', '--porcelain'), '')
        return text

    def test_all_apply(self):
        self.upstream('system/memory.c', 'int memory_step_0',
                      '\n\n\nint moved;\nint memory_step_0')
        text = self.unchanged(0, self.other)
        self.assertIn('2 of 2 patches apply', text)
        self.assertEqual([row['result'] for row in self.report()['patches']],
                         ['ok', 'ok'])

    def test_conflict_is_recorded_and_the_rest_goes_on(self):
        self.third()
        self.conflict()
        text = self.unchanged(1, self.other)
        self.assertIn('2 of 3 patches apply', text)
        rows = self.report()['patches']
        self.assertEqual([row['result'] for row in rows],
                         ['ok', 'conflict', 'ok'])
        self.assertEqual(rows[1]['files'], ['system/memory.c'])
        head = self.report()['result']
        self.assertIn('hooked', self.git('show', f'{head}:system/vl.c'))
        self.assertIn('x + 77', self.git('show', f'{head}:system/memory.c'))

    def test_three_way_merges_what_plain_apply_would_not(self):
        self.upstream('system/memory.c', 'memory_step_8(int x)',
                      'memory_step_8(long x)')
        self.upstream('system/memory.c', 'x + 6;', 'x + 66;')
        self.unchanged(0, self.other)

    def test_hooked_file_that_is_gone(self):
        os.unlink(os.path.join(self.other, 'system/memory.c'))
        self.unchanged(1, self.other)
        self.assertEqual(self.report()['patches'][1]['files'],
                         ['system/memory.c'])

    def test_own_file_that_upstream_has_now(self):
        path = os.path.join(self.other, 'system/counter.c')
        with open(path, 'w') as out:
            out.write('int theirs;\n')
        self.unchanged(1, self.other)
        self.assertEqual(self.report()['patches'][0]['files'],
                         ['system/counter.c'])

    def test_hook_that_upstream_has_already(self):
        self.upstream('system/memory.c', 'x + 7;', 'x + 700;')
        self.unchanged(1, self.other)
        self.assertNotEqual(self.report()['patches'][1]['result'], 'ok')

    def test_archive(self):
        archive = os.path.join(self.home, 'qemu-11.tar.xz')
        subprocess.run(['tar', '-cJf', archive, '-C', self.home, 'qemu-11'],
                       check=True)
        self.unchanged(0, archive)
        self.assertTrue(self.exists('build/rehearse-qemu-11.tar.xz.json'))

    def test_commit_of_the_tree(self):
        self.unchanged(0, BASE)

    def make_submodule(self):
        run = ['git', '-C', self.other, '-c', 'user.name=x', '-c',
               'user.email=x@y.invalid']
        subprocess.run(['git', 'init', '-q', self.other], check=True)
        for args in (('add', '-A', '-f'), ('commit', '-q', '-m', 'x'),
                     ('tag', 'v11.0.0')):
            subprocess.run([*run, *args], check=True,
                           stderr=subprocess.DEVNULL)

    def test_tag_of_the_submodule(self):
        self.make_submodule()
        os.rename(self.other, self.path('qemu'))
        self.unchanged(0, 'v11.0.0')
        self.assertTrue(self.exists('build/rehearse-v11.0.0.json'))

    def test_tag_of_the_pinned_repository(self):
        self.make_submodule()
        url = f'file://{self.other}'.replace(' ', '%20')
        self.put('UPSTREAM', f'tag: v10.2.2\nrepository:   {url}\n')
        self.unchanged(0, 'v11.0.0')
        self.fails('rehearse', 'v12.0.0', naming=[url, 'v12.0.0'])

    def test_unknown_target(self):
        self.fails('rehearse', 'v99', naming=['v99', 'name the directory'])
        self.fails('rehearse', '--', '-x', naming='neither a directory')

    def test_directory_that_is_no_qemu(self):
        self.fails('rehearse', self.path('src'), naming='VERSION')

    def test_file_that_is_no_archive(self):
        self.fails('rehearse', self.path('src/system/counter.c'),
                   naming='no tar archive')

    def test_build_command(self):
        text = self.unchanged(0, self.other, '--build',
                              'grep -q 11 VERSION && test -f '
                              'system/counter.c')
        self.assertIn('build     ok', text)
        self.fails('rehearse', self.other, '--build', 'exit 3',
                   naming='status 3')
        self.assertEqual(self.report()['build']['status'], 3)

    def test_build_command_from_a_hook_of_another_repository(self):
        """git sets these for hooks; they must not reach the command."""
        with mock.patch.dict(os.environ, GIT_DIR='/elsewhere/.git'):
            self.ok('rehearse', self.other, '--build', 'test -z "$GIT_DIR"')

    def test_dirty_tree_is_no_obstacle(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.ok('rehearse', self.other)


class Rebase(Other):
    def pin(self):
        """What the developer does in the end: the new base in build/base."""
        shutil.rmtree(self.path('build/base/tree'))
        shutil.copytree(self.other, self.path('build/base/tree'),
                        symlinks=True)
        self.put('build/base/tree.origin', b'11.0.0 y\n')

    def test_clean_rebase_export_and_pin(self):
        old = self.tip()
        self.upstream('system/memory.c', 'int memory_step_0',
                      '\n\n\nint moved;\nint memory_step_0')
        text = self.ok('rebase', self.other)
        self.assertIn('UPSTREAM', text)
        self.assertIn(old, self.git('for-each-ref', 'refs/hotpath/saved'))
        self.assertEqual(self.get('build/tree/VERSION'), b'11.0.0\n')
        self.assertEqual(self.git('status', '--porcelain'), '')
        self.assertIn(b'x + 700', self.get('build/tree/system/memory.c'))
        self.ok('export')
        self.assertIn(b'@@ -39,7 +39,7 @@', list(self.patches().values())[1])
        base = self.git('rev-parse', BASE)
        self.pin()
        self.ok('apply')
        self.assertEqual(self.git('rev-parse', BASE), base)
        self.assertApplies()
        self.assertIn('\nok 7', self.run_check())

    def test_work_is_protected(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.refuses('rebase', self.other, naming='system/vl.c')
        self.commit(message('vl: be mine'))
        self.refuses('rebase', self.other, naming='not exported')

    def test_ignored_file_of_the_user_is_protected(self):
        self.put('build/tree/hw/mine.o', b'mine')
        with open(os.path.join(self.other, 'hw/mine.o'), 'w') as out:
            out.write('theirs')
        self.refuses('rebase', self.other, naming=['build/tree/hw/mine.o',
                                                   'move it away'])
        os.unlink(self.path('build/tree/hw/mine.o'))
        self.ok('rebase', self.other)
        self.assertEqual(self.get('build/tree/hw/mine.o'), b'theirs')

    def test_edits_here_are_carried_first(self):
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.ok('rebase', '--onto', self.other)
        self.assertIn(b'line_x', self.get('build/tree/system/counter.c'))
        self.assertIn(b'line_x', self.get('src/system/counter.c'))

    def test_not_exported_after_a_rebase(self):
        self.ok('rebase', self.other)
        self.refuses('apply', naming='not exported')
        self.ok('prepare')
        self.ok('apply', '--discard')
        self.assertIn(b'x + 700', self.get('build/tree/system/memory.c'))
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_conflict_leaves_a_branch_to_go_on_with(self):
        self.third()
        self.conflict()
        before = self.snapshot('src', 'tests', 'patches', 'build/tree')
        tip = self.tip()
        text = self.fails('rebase', self.other, naming=[
            'rebase-wip', '0002-memory-use-the-counter.patch', '--continue'])
        self.assertIn('2 of 3', text)
        self.assertEqual(before, self.snapshot('src', 'tests', 'patches',
                                               'build/tree'))
        self.assertEqual(self.tip(), tip)
        self.ok('apply')
        self.git('switch', '-q', 'rebase-wip')
        self.git('am', '-q', '-3', '--keep-cr',
                 '../series/0002-memory-use-the-counter.patch', check=False)
        self.put('build/tree/system/memory.c',
                 self.git('show', 'HEAD:system/memory.c').replace(
                     'x + 77;', 'x + 7700;') + '\n\n')
        self.git('add', 'system/memory.c')
        self.git('am', '-q', '--continue')
        self.ok('rebase', '--continue')
        self.assertEqual(self.git('symbolic-ref', 'HEAD'),
                         'refs/heads/series')
        self.assertEqual(self.git('branch', '--list', 'rebase-wip'), '')
        self.ok('export')
        self.assertEqual(list(self.patches())[2],
                         '0003-memory-use-the-counter.patch')
        self.assertIn(b'+    return x + 7700;', list(
            self.patches().values())[2])
        self.assertApplies()
        self.assertIn('\nok 7', self.run_check())

    def test_continue_without_a_rebase(self):
        self.refuses('rebase', '--continue', naming='no branch rebase-wip')

    def test_continue_with_work_not_committed(self):
        self.conflict()
        self.fails('rebase', self.other)
        self.git('switch', '-q', 'rebase-wip')
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.refuses('rebase', '--continue', naming='system/vl.c')


if __name__ == '__main__':
    unittest.main()
