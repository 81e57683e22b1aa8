# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/series apply and prepare."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from support import (BASE, EMPTY_BZ2, SCRIPT, SPDX, UPSTREAM, Project, get,
                     make_upstream, message, put, run_series)


class Create(Project):
    def test_base_is_byte_identical(self):
        """Neither attributes nor ignore rules of upstream alter the base."""
        for name, data in UPSTREAM.items():
            if name.startswith('system/me'):
                continue
            self.assertEqual(self.get(f'build/tree/{name}'), data, name)
        self.assertEqual(os.readlink(self.path('build/tree/system/link.c')),
                         'vl.c')
        self.assertTrue(os.access(self.path('build/tree/scripts/run.sh'),
                                  os.X_OK))
        blob = self.git('cat-file', 'blob', f'{BASE}:hw/crlf.c')
        self.assertEqual(blob.encode(), b'int a;\r\nint b;\r\nint c;\r')
        self.assertIn('hw/ignored.o',
                      self.git('ls-tree', '-r', '--name-only', BASE))

    def test_placeholder_is_in_the_work_tree_only(self):
        name = 'pc-bios/edk2-x86_64-code.fd.bz2'
        self.assertEqual(self.get(f'build/tree/{name}'), EMPTY_BZ2)
        self.assertNotIn(name, self.git('ls-tree', '-r', '--name-only', BASE))
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_real_firmware_is_in_the_base(self):
        shutil.rmtree(self.path('build/tree'))
        name = 'pc-bios/edk2-x86_64-code.fd.bz2'
        self.put(f'build/base/tree/{name}', b'BZh9 real firmware')
        self.ok('apply')
        self.assertIn(name, self.git('ls-tree', '-r', '--name-only', BASE))

    def test_same_input_gives_same_ids(self):
        tip = self.tip()
        shutil.rmtree(self.path('build/tree'))
        self.ok('apply')
        self.assertEqual(self.tip(), tip)

    def test_identity_and_dates(self):
        rows = self.git('log', '--format=%an <%ae> %cn <%ce> %at %ct',
                        f'{BASE}..series').split('\n')
        who = 'qemu-hotpath <maintainers@qemu-hotpath.invalid>'
        self.assertEqual(set(rows), {f'{who} {who} 1700000000 1700000000'})

    def test_no_base(self):
        shutil.rmtree(self.path('build'))
        self.fails('apply', naming='scripts/fetch-base')
        self.assertFalse(self.exists('build/tree'))

    def test_base_that_is_no_qemu(self):
        shutil.rmtree(self.path('build/tree'))
        os.unlink(self.path('build/base/tree/VERSION'))
        self.fails('apply', naming='VERSION')

    def test_base_as_symbolic_link(self):
        tip = self.tip()
        shutil.rmtree(self.path('build/tree'))
        other = os.path.join(self.home, 'elsewhere')
        os.rename(self.path('build/base/tree'), other)
        os.symlink(other, self.path('build/base/tree'))
        self.ok('apply')
        self.assertEqual(self.tip(), tip)

    def test_nested_repository_in_base(self):
        shutil.rmtree(self.path('build/tree'))
        sub = self.path('build/base/tree/subprojects/x')
        make_upstream(sub)
        subprocess.run(['git', 'init', '-q', sub], check=True)
        subprocess.run(['git', '-C', sub, '-c', 'user.name=x', '-c',
                        'user.email=x@y.invalid', 'commit', '-q',
                        '--allow-empty', '-m', 'x'], check=True)
        self.fails('apply', naming='subprojects/x')
        shutil.rmtree(os.path.join(sub, '.git'))
        self.ok('apply')

    def test_leftover_of_an_interrupted_creation(self):
        shutil.rmtree(self.path('build/tree'))
        self.put('build/tree.new/.git/index.lock', b'')
        self.ok('apply')
        self.assertEqual(self.git('status', '--porcelain'), '')
        self.assertFalse(self.exists('build/tree.new'))

    def test_foreign_directory_is_not_overwritten(self):
        shutil.rmtree(self.path('build/tree'))
        self.put('build/tree/mine', b'mine')
        self.fails('apply', naming='move it away')
        self.assertEqual(self.get('build/tree/mine'), b'mine')

    def test_no_patches_at_all(self):
        shutil.rmtree(self.path('build/tree'))
        for name in ('patches', 'src', 'tests'):
            shutil.rmtree(self.path(name))
        self.ok('apply')
        self.assertEqual(self.tip(), self.git('rev-parse', BASE))


class Apply(Project):
    def test_folds_own_files_into_their_patch(self):
        names = self.git('show', '--format=', '--name-only',
                         'series~1').split('\n')
        self.assertEqual(names, ['include/system/counter.h',
                                 'system/counter.c', 'system/meson.build',
                                 'tests/unit/test-counter.c'])

    def test_nothing_to_do_writes_nothing(self):
        before = self.snapshot('build/tree')
        state = self.get('build/tree/.git/hotpath/state.json')
        self.assertIn('up to date', self.ok('apply'))
        self.assertEqual(self.snapshot('build/tree'), before)
        self.assertEqual(self.get('build/tree/.git/hotpath/state.json'), state)

    def test_only_changed_files_are_written(self):
        before = self.snapshot('build/tree')
        self.replace('src/system/counter.c', 'line_3;', 'line_three;')
        self.ok('apply')
        after = self.snapshot('build/tree')
        changed = [name for name in after if after[name] != before.get(name)]
        self.assertEqual(changed, ['build/tree/system/counter.c'])
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_patch_edited_on_disk(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', '+    return x + 700;',
                     '+    return x + 701;')
        before = self.snapshot('build/tree')
        self.ok('apply')
        after = self.snapshot('build/tree')
        changed = [name for name in after if after[name] != before.get(name)]
        self.assertEqual(changed, ['build/tree/system/memory.c'])
        self.assertIn(b'x + 701', self.get('build/tree/system/memory.c'))

    def test_patch_removed_on_disk(self):
        first, second = self.patches()
        os.unlink(self.path(f'patches/{second}'))
        self.ok('apply')
        self.assertIn(b'x + 7;', self.get('build/tree/system/memory.c'))
        self.assertEqual(self.git('log', '--format=%s', f'{BASE}..series'),
                         'system: add a counter')

    def test_hook_that_fails_names_patch_file_hunk_and_line(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', '-    return x + 7;',
                     '-    return y + 7;')
        line = self.get(f'patches/{name}').split(b'\n').index(
            next(row for row in self.get(f'patches/{name}').split(b'\n')
                 if row.startswith(b'@@'))) + 1
        self.refuses('apply', naming=[name, 'system/memory.c', '@@ -35,7',
                                      f'line {line} of the patch'])

    def test_failure_of_a_later_patch_keeps_the_earlier_unapplied(self):
        first, second = self.patches()
        self.replace('src/system/counter.c', 'line_3;', 'line_three;')
        self.replace(f'patches/{first}', "+  'counter.c',",
                     "+  'counter2.c',")
        self.replace(f'patches/{second}', '-    return x', '-    return y')
        self.refuses('apply', naming=second)

    def test_corrupt_patch(self):
        name = list(self.patches())[1]
        self.put(f'patches/{name}', self.patches()[name][:-60])
        self.refuses('apply', naming=[name, 'corrupt'])

    def test_offset_is_told(self):
        name = list(self.patches())[1]
        data = self.patches()[name]
        self.put(f'patches/{name}', data.replace(b'@@ -35,7 +35,7',
                                                 b'@@ -30,7 +30,7'))
        self.assertIn('off by 5', self.ok('apply'))
        self.assertIn('not ok 3', self.run_check(1))
        self.ok('export')
        self.assertEqual(self.patches()[name], data)

    def test_no_fuzz(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', '\n {', '\n  {')
        self.refuses('apply', naming='does not apply')

    def test_own_file_that_upstream_has(self):
        self.put('src/system/vl.c', SPDX)
        self.refuses('apply', naming=['src/system/vl.c', 'upstream'])
        self.refuses('sync', naming=['src/system/vl.c', 'upstream'])

    def test_two_owners(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', '\n---\n',
                     '\nFiles: system/counter.c\n---\n')
        self.refuses('apply', naming=['system/counter.c', 'one owner'])

    def test_owned_file_that_is_missing(self):
        os.unlink(self.path('src/system/counter.c'))
        self.refuses('apply', naming=['system/counter.c',
                                      'src/system/counter.c'])

    def test_unowned_file_is_in_the_tree_with_a_warning(self):
        self.put('src/system/loose.c', SPDX)
        self.assertIn('owned by no patch yet: src/system/loose.c',
                      self.ok('apply'))
        self.assertTrue(self.exists('build/tree/system/loose.c'))
        self.assertIn('up to date', self.ok('apply'))

    def test_hook_that_touches_an_own_file(self):
        name = list(self.patches())[1]
        self.put(f'patches/{name}', self.patches()[name] + (
            b'diff --git a/system/counter.c b/system/counter.c\n'
            b'--- a/system/counter.c\n+++ b/system/counter.c\n'
            b'@@ -1,4 +1,4 @@\n ' + SPDX.encode() +
            b'-int line_0;\n+int line_zero;\n int line_1;\n'
            b' int line_2;\n'))
        self.refuses('apply', naming=['system/counter.c', 'own file'])

    def test_hook_that_creates_a_file(self):
        name = list(self.patches())[1]
        self.put(f'patches/{name}', self.patches()[name] + (
            b'diff --git a/hw/new.c b/hw/new.c\nnew file mode 100644\n'
            b'--- /dev/null\n+++ b/hw/new.c\n@@ -0,0 +1 @@\n+int x;\n'))
        self.refuses('apply', naming=['hw/new.c', 'src/hw/new.c', 'Files:'])

    def test_empty_patch(self):
        name = list(self.patches())[1]
        data = self.patches()[name]
        self.put(f'patches/{name}', data[:data.index(b'---\n') + 4])
        self.refuses('apply', naming=[name, 'empty'])

    def test_patch_of_own_files_only(self):
        self.put('src/hw/alone.c', SPDX)
        first = list(self.patches().values())[0]
        text = first[:first.index(b'\n---\n')]
        text = text.replace(b'add a counter', b'add a file')
        text = text[:text.index(b'Files:')] + b'Files: hw/alone.c'
        self.put('patches/0003-hw-alone.patch', text + b'\n---\n')
        self.ok('apply')
        self.assertEqual(self.git('show', '--format=', '--name-only'),
                         'hw/alone.c')
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_names_and_numbers_of_patch_files(self):
        first, second = self.patches()
        self.put('patches/0002-again.patch', self.patches()[second])
        self.refuses('apply', naming=['0002-again.patch', 'same number'])
        os.unlink(self.path('patches/0002-again.patch'))
        self.put('patches/late.patch', self.patches()[second])
        self.refuses('apply', naming=['late.patch', 'NNNN-slug.patch'])

    def test_wrong_number_fails_the_check_and_export_renumbers(self):
        first, second = self.patches()
        os.rename(self.path(f'patches/{second}'),
                  self.path('patches/0007-memory-use-the-counter.patch'))
        self.ok('apply')
        self.assertIn('is number 2', self.run_check(1))
        self.ok('export')
        self.assertEqual(list(self.patches()), [first, second])

    def test_dependent_patches_in_wrong_order(self):
        self.replace('build/tree/system/memory.c', 'x + 700;', 'x + 7000;')
        self.commit(message('memory: count more'))
        self.ok('export')
        names = list(self.patches())
        os.rename(self.path(f'patches/{names[2]}'),
                  self.path('patches/0000-memory-count-more.patch'))
        self.refuses('apply', naming='0000-memory-count-more.patch')


class Protect(Project):
    """Nothing that the user edited is ever lost."""

    def test_uncommitted_hook(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.refuses('apply', naming=['system/vl.c', '--discard', 'export'])

    def test_staged_hook(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.git('add', '-A')
        self.refuses('apply', naming='system/vl.c')

    def test_deleted_upstream_file(self):
        os.unlink(self.path('build/tree/system/vl.c'))
        self.refuses('apply', naming='system/vl.c')

    def test_commit_that_is_not_exported(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.commit(message('vl: be mine'))
        self.refuses('apply', naming=['vl: be mine', 'not exported'])

    def test_amended_commit(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.amend()
        self.refuses('apply', naming='not exported')

    def test_branch_reset(self):
        self.git('reset', '-q', '--hard', 'series~1')
        self.refuses('apply', naming='not exported')

    def test_other_branch_and_detached(self):
        self.git('switch', '-q', '-c', 'topic')
        self.refuses('apply', naming=['topic', 'not on branch series'])
        self.refuses('sync', naming='topic')
        self.refuses('export', naming='topic')
        self.git('switch', '-q', '--detach', 'series')
        self.refuses('apply', naming='detached')

    def test_rebase_in_progress(self):
        self.git('rebase', '-x', 'false', BASE, check=False)
        for command in ('apply', 'sync', 'export'):
            self.refuses(command, naming='in the middle of a rebase')
        self.assertIn('as it is', self.ok('prepare'))

    def test_untracked_file_is_left_alone(self):
        self.put('build/tree/hw/notes.txt', b'mine')
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.ok('apply')
        self.assertEqual(self.get('build/tree/hw/notes.txt'), b'mine')

    def test_untracked_file_in_the_way(self):
        self.put('build/tree/hw/new.c', b'int mine;\n')
        self.put('src/hw/new.c', b'int other;\n')
        self.refuses('apply', naming=['src/hw/new.c', 'build/tree/hw/new.c'])

    def test_discard_saves_everything(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int committed')
        self.commit(message('vl: commit'))
        self.replace('build/tree/system/vl.c', 'int last', 'int dirty')
        self.replace('build/tree/system/counter.c', 'line_3', 'line_mine')
        self.put('build/tree/hw/untracked.c', b'untracked\n')
        text = self.ok('apply', '--discard')
        ref = text.split('saved the state of build/tree as ')[1].split()[0]
        saved = self.git('show', f'{ref}:system/vl.c')
        self.assertEqual(saved, 'int committed;\nint dirty;')
        self.assertIn('line_mine', self.git('show', f'{ref}:system/counter.c'))
        self.assertEqual(self.git('show', f'{ref}:hw/untracked.c'),
                         'untracked')
        self.assertEqual(self.git('log', '-1', '--format=%s', f'{ref}~1'),
                         'vl: commit')
        self.assertEqual(self.get('build/tree/system/vl.c'),
                         UPSTREAM['system/vl.c'])
        self.assertNotIn(b'line_mine', self.get('build/tree/system/counter.c'))
        self.assertNotIn(b'line_mine', self.get('src/system/counter.c'))
        self.assertIn('up to date', self.ok('apply'))

    def test_discard_saves_ignored_files_that_own_files_replace(self):
        self.put('build/tree/hw/hidden.h', b'mine\n')
        self.put('src/hw/hidden.h', SPDX)
        self.refuses('apply', naming='hw/hidden.h')
        text = self.ok('apply', '--discard')
        self.assertEqual(self.get('build/tree/hw/hidden.h'), SPDX.encode())
        ref = text.split('saved the state of build/tree as ')[1].split()[0]
        self.assertEqual(self.git('show', f'{ref}:hw/hidden.h'), 'mine')

    def test_discard_ends_a_rebase_and_keeps_both_ends(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.commit(message('vl: be mine'))
        mine = self.tip()
        self.git('rebase', '-f', '-x', 'false', BASE, check=False)
        self.ok('apply', '--discard')
        saved = self.git('for-each-ref', '--format=%(refname)',
                         'refs/hotpath/saved').split('\n')
        kept = [self.git('merge-base', '--is-ancestor', mine, ref, check=False)
                for ref in saved]
        self.assertEqual(len(kept), 2)
        self.assertIn(mine, [self.git('rev-parse', ref) for ref in saved])
        self.assertIn('up to date', self.ok('apply'))

    def test_two_discards_in_a_second_keep_both(self):
        for text in ('int one', 'int two'):
            self.replace('build/tree/system/vl.c', 'int vl', text)
            self.ok('apply', '--discard')
        refs = self.git('for-each-ref', '--format=%(refname)',
                        'refs/hotpath/saved').split('\n')
        found = {self.git('show', f'{ref}:system/vl.c')[:7] for ref in refs}
        self.assertEqual(found, {'int one', 'int two'})

    def test_lost_record(self):
        os.unlink(self.path('build/tree/.git/hotpath/state.json'))
        self.fails('apply', naming='--discard')
        self.ok('apply', '--discard')
        self.assertIn('up to date', self.ok('apply'))
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_torn_record(self):
        self.put('build/tree/.git/hotpath/state.json', b'{"base": ')
        self.fails('apply', naming='--discard')
        self.ok('apply', '--discard')
        self.assertIn('up to date', self.ok('apply'))


class Prepare(Project):
    def test_creates_the_tree(self):
        tip = self.tip()
        shutil.rmtree(self.path('build/tree'))
        self.ok('prepare')
        self.assertEqual(self.tip(), tip)

    def test_changed_own_file_is_synced_only(self):
        tip = self.tip()
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.ok('prepare')
        self.assertIn(b'line_x', self.get('build/tree/system/counter.c'))
        self.assertEqual(self.tip(), tip)

    def test_changed_patch_is_applied(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', 'x + 700;', 'x + 701;')
        self.ok('prepare')
        self.assertIn(b'x + 701', self.get('build/tree/system/memory.c'))

    def test_hooks_in_work_do_not_hinder_a_build(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.ok('prepare')
        self.assertIn(b'int mine', self.get('build/tree/system/vl.c'))
        self.assertIn(b'line_x', self.get('build/tree/system/counter.c'))

    def test_changed_patch_and_hooks_in_work(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', 'x + 700;', 'x + 701;')
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.refuses('prepare', naming='system/vl.c')

    def test_new_base(self):
        old = self.git('rev-parse', BASE)
        self.put('build/base/tree/VERSION', b'10.2.3\n')
        self.replace('build/base/tree/system/vl.c', 'int last', 'int newer')
        self.put('build/base/tree.origin', b'10.2.3 y\n')
        self.ok('prepare')
        self.assertNotEqual(self.git('rev-parse', BASE), old)
        self.assertIn(b'int newer', self.get('build/tree/system/vl.c'))
        self.assertIn(b'x + 700', self.get('build/tree/system/memory.c'))
        self.assertApplies()

    def new_base(self, name='system/vl.c', old='int last', new='int newer'):
        """Another base, and its stamp."""
        self.replace(f'build/base/tree/{name}', old, new)
        self.put('build/base/tree/VERSION', b'10.2.3\n')
        self.put('build/base/tree.origin', b'10.2.3 y\n')

    def test_file_of_the_user_where_the_new_base_has_one(self):
        for name in ('notes.txt', 'hw/ignored by rule.o'):
            self.put(f'build/tree/{name}', b'mine')
            self.put(f'build/base/tree/{name}', b'theirs')
        self.new_base()
        for command in ('prepare', 'apply'):
            self.refuses(command, naming=[
                'build/tree/notes.txt', 'build/tree/hw/ignored by rule.o',
                'move it away'])
        os.unlink(self.path('build/tree/notes.txt'))
        self.put('build/tree/hw/ignored by rule.o', b'theirs')
        self.ok('prepare')
        self.assertEqual(self.get('build/tree/notes.txt'), b'theirs')
        self.assertApplies()

    def test_folder_of_the_user_where_the_new_base_has_a_file(self):
        self.put('build/tree/hw/notes/today.txt', b'mine')
        self.put('build/base/tree/hw/notes', b'theirs')
        self.new_base()
        self.refuses('prepare', naming='build/tree/hw/notes/today.txt')

    def test_file_of_the_user_where_the_new_base_has_a_folder(self):
        self.put('build/tree/hw/notes', b'mine')
        self.put('build/base/tree/hw/notes/today.txt', b'theirs')
        self.new_base()
        self.refuses('prepare', naming='build/tree/hw/notes: in no commit')

    def test_new_base_turns_folders_into_files_and_back(self):
        """What upstream had is in nobody's way, nor are placeholders."""
        shutil.rmtree(self.path('build/base/tree/linux-user'))
        self.put('build/base/tree/linux-user', b'a file')
        os.unlink(self.path('build/base/tree/README.rst'))
        self.put('build/base/tree/README.rst/inner', b'inner')
        self.put('build/base/tree/pc-bios/edk2-x86_64-code.fd.bz2',
                 b'BZh9 real firmware')
        self.new_base()
        self.ok('prepare')
        self.assertEqual(self.get('build/tree/linux-user'), b'a file')
        self.assertEqual(self.get('build/tree/README.rst/inner'), b'inner')
        self.assertApplies()

    def test_own_file_that_made_room_for_the_new_base(self):
        self.put('src/system/loose.c', SPDX)
        self.ok('sync')
        os.unlink(self.path('src/system/loose.c'))
        self.put('build/base/tree/system/loose.c', b'theirs')
        self.new_base()
        self.ok('prepare')
        self.assertEqual(self.get('build/tree/system/loose.c'), b'theirs')
        self.assertApplies()

    def test_new_base_after_an_export(self):
        """The export of work on the old base does not hide the new one."""
        old = self.git('rev-parse', BASE)
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.commit(message('vl: be mine'))
        self.new_base('docs/index.rst', 'docs', 'newer docs')
        self.refuses('prepare', naming=['not exported', 'export'])
        self.ok('export')
        self.assertEqual(self.git('rev-parse', BASE), old)
        self.ok('prepare')
        self.assertNotEqual(self.git('rev-parse', BASE), old)
        self.assertIn(b'newer', self.get('build/tree/docs/index.rst'))
        self.assertIn(b'int mine', self.get('build/tree/system/vl.c'))
        self.assertIn('up to date', self.ok('apply'))
        self.assertApplies()

    def test_edit_here_that_a_busy_tree_does_not_get(self):
        self.git('switch', '-q', '-c', 'work')
        self.assertNotIn('not in this build', self.ok('prepare'))
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.put('src/hw/new.c', SPDX)
        os.unlink(self.path('tests/unit/test-counter.c'))
        before = self.snapshot('src', 'build/tree')
        text = self.ok('prepare')
        self.assertIn('on branch work', text)
        self.assertIn('not in this build, as they are here: src/hw/new.c, '
                      'src/system/counter.c, tests/unit/test-counter.c\n',
                      text)
        self.assertEqual(self.snapshot('src', 'build/tree'), before)

    def test_own_files_that_a_rebase_has_not_reached(self):
        """What was edited here is named first."""
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.git('checkout', '-q', '--detach', BASE)
        text = self.ok('prepare')
        self.assertIn('as they are here: src/system/counter.c, '
                      'src/include/system/counter.h, '
                      'tests/unit/test-counter.c\n', text)

    def test_base_that_is_gone_later_is_no_problem(self):
        shutil.rmtree(self.path('build/base'))
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.ok('prepare')
        self.ok('apply')
        self.ok('export')


class CommandLine(Project):
    def call(self, *args, **kwargs):
        return subprocess.run([sys.executable, SCRIPT, *args],
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, **kwargs)

    def test_usage(self):
        self.assertEqual(self.call().returncode, 2)
        self.assertEqual(self.call('bogus').returncode, 2)
        self.assertEqual(self.call('rebase').returncode, 2)
        help_text = self.call('--help')
        self.assertEqual(help_text.returncode, 0)
        for word in ('apply', 'export', 'Files:', 'rehearse', 'exit status'):
            self.assertIn(word, help_text.stdout)

    def test_error_is_one_line_on_stderr(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        done = self.call('--root', self.root, 'apply')
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, '')
        self.assertEqual(done.stderr.count('\n'), 1)

    def test_from_a_hook_inside_another_repository(self):
        """git sets these for hooks; they must not reach our git."""
        other = os.path.join(self.home, 'other')
        subprocess.run(['git', 'init', '-q', other], check=True)
        env = dict(os.environ, GIT_DIR=os.path.join(other, '.git'),
                   GIT_WORK_TREE=other, GIT_PREFIX='x/',
                   GIT_INDEX_FILE=os.path.join(other, '.git/index'),
                   GIT_OBJECT_DIRECTORY=os.path.join(other, '.git/objects'))
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        done = self.call('--root', self.root, 'apply', cwd=other, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.git('status', '--porcelain'), '')
        self.assertFalse(os.path.exists(os.path.join(other, '.git/index')))
        self.assertEqual(os.listdir(other), ['.git'])

    def test_project_inside_a_repository(self):
        """As it is in real life: build/ lies in the project's repository."""
        subprocess.run(['git', 'init', '-q', self.root], check=True)
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.assertApplies()
        self.assertFalse(self.exists('.git/index'))

    def test_second_run_waits_for_the_first(self):
        import fcntl
        with open(self.path('build/.series.lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = subprocess.Popen(
                [sys.executable, SCRIPT, '--root', self.root, 'apply'],
                stdout=subprocess.PIPE, text=True)
            self.assertIn('waiting', waiting.stdout.readline())
            fcntl.flock(lock, fcntl.LOCK_UN)
            rest, _ = waiting.communicate(timeout=60)
        self.assertEqual(waiting.returncode, 0)
        self.assertIn('up to date', rest)

    def test_unwritable_output(self):
        if os.geteuid() == 0:
            self.put('build/series', b'a file where a folder should be')
        else:
            os.makedirs(self.path('build/series'))
            os.chmod(self.path('build/series'), 0o555)
        self.fails('series', naming='build/series')


class Interrupted(Project):
    """Killed at any step, the next run leaves what a whole run leaves."""

    def die_at(self, step, *args):
        """Run in a child that dies before its step-th action; return whether
        it died."""
        child = os.fork()
        if child == 0:
            self.run_and_die(step, args)
        _, status = os.waitpid(child, 0)
        code = os.WEXITSTATUS(status)
        self.assertIn(code, (0, 77), f'step {step} of {args}')
        return code == 77

    def run_and_die(self, step, args):
        import serieslib.commands as commands
        import serieslib.git as git
        import serieslib.sync as sync
        import serieslib.tree as tree
        count = [0]

        writing = {'update-ref', 'read-tree', 'update-index', 'write-tree',
                   'commit-tree', 'hash-object', 'apply'}

        def mortal(function):
            def call(*a, **k):
                if function is real_run and a[1] not in writing:
                    return function(*a, **k)
                count[0] += 1
                if count[0] == step:
                    os._exit(77)
                return function(*a, **k)
            return call

        real_run = git.Git.run
        git.Git.run = mortal(real_run)
        os.replace = mortal(os.replace)
        for module in (tree, sync):
            module.write_file = mortal(module.write_file)
            module.remove_file = mortal(module.remove_file)
        commands.write_file = mortal(commands.write_file)
        status = 70
        try:
            status, _ = run_series(self.root, *args)
        finally:
            os._exit(status)

    def edits(self):
        """New, changed and deleted own files; a changed hook."""
        self.replace('src/system/counter.c', 'line_3', 'line_x')
        self.put('src/system/extra.c', SPDX)
        os.unlink(self.path('src/include/system/counter.h'))
        first, second = self.patches()
        self.replace(f'patches/{first}', 'Files: include/system/counter.h',
                     'Files: system/extra.c')
        self.replace(f'patches/{second}', 'x + 700;', 'x + 701;')

    def every_step(self, edit, command, repair):
        """Kill command at every step; repair must give the same result."""
        edit()
        start = os.path.join(self.home, 'start')
        shutil.copytree(self.root, start, symlinks=True)
        self.ok(command)
        want_tip, want = self.tip(), self.contents()
        step, died = 0, True
        while died:
            step += 1
            shutil.rmtree(self.root)
            shutil.copytree(start, self.root, symlinks=True)
            died = self.die_at(step, command)
            repair()
            self.assertEqual(self.tip(), want_tip, f'step {step}')
            self.assertEqual(self.contents(), want, f'step {step}')
            self.assertEqual(self.git('status', '--porcelain'), '',
                             f'step {step}')
        self.assertGreater(step, 15)

    def contents(self):
        return {name: data for name, (data, _) in self.snapshot(
            'src', 'tests', 'patches', 'build/tree').items()}

    def test_apply(self):
        self.every_step(self.edits, 'apply', lambda: self.ok('apply'))

    def test_export(self):
        def edit():
            self.put('build/tree/system/extra.c', SPDX)
            self.replace('build/tree/system/counter.c', 'line_3', 'line_x')
            self.replace('build/tree/system/memory.c', 'x + 700;', 'x + 701;')
            self.amend(message('memory: use two', 'system/extra.c'))

        self.every_step(edit, 'export', lambda: self.ok('export'))

    def interrupt(self):
        import serieslib.tree as tree
        self.edits()
        real = tree.Tree.finish_move
        tree.Tree.finish_move = lambda self: sys.exit(9)
        try:
            status, _ = run_series(self.root, 'apply')
        finally:
            tree.Tree.finish_move = real
        self.assertEqual(status, 9)

    def test_lock_of_a_git_that_was_killed(self):
        self.interrupt()
        self.put('build/tree/.git/index.lock', b'')
        with mock.patch('serieslib.tree.time.sleep'):
            self.ok('apply')
        self.assertIn(b'x + 701;', self.get('build/tree/system/memory.c'))
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_export_of_nothing(self):
        """The patches are removed, then it is killed; it can be repeated."""
        import serieslib.tree as tree
        self.git('reset', '-q', '--hard', BASE)
        with mock.patch.object(tree.Tree, 'move', lambda *a, **k: sys.exit(9)):
            self.assertEqual(run_series(self.root, 'export')[0], 9)
        self.assertEqual(self.patches(), {})
        self.ok('export')
        self.assertIn('up to date', self.ok('apply'))

    def test_edit_after_the_interruption_is_kept(self):
        self.interrupt()
        self.replace('build/tree/system/memory.c', 'x + 8;', 'x + 800;')
        self.fails('apply', naming=['system/memory.c', '--discard'])
        self.assertIn(b'x + 800;', self.get('build/tree/system/memory.c'))
        self.ok('apply', '--discard')
        self.assertIn(b'x + 701;', self.get('build/tree/system/memory.c'))


class Safe(unittest.TestCase):
    def test_tree_of_another_owner(self):
        """A base unpacked by somebody else is imported all the same."""
        if os.geteuid() != 0:
            self.skipTest('only root can give files away')
        with tempfile.TemporaryDirectory() as root:
            make_upstream(os.path.join(root, 'build/base/tree'))
            for folder, _, files in os.walk(os.path.join(root, 'build')):
                for name in files + ['.']:
                    os.chown(os.path.join(folder, name), 65534, 65534,
                             follow_symlinks=False)
            put(os.path.join(root, 'patches/README'), b'no patch')
            status, text = run_series(root, 'apply')
            self.assertEqual(status, 0, text)
            self.assertEqual(get(os.path.join(root, 'build/tree/VERSION')),
                             b'10.2.2\n')
            os.chown(os.path.join(root, 'build/tree'), 65534, 65534)
            os.chown(os.path.join(root, 'build/tree/.git'), 65534, 65534)
            status, text = run_series(root, 'apply')
            self.assertEqual(status, 0, text)


if __name__ == '__main__':
    unittest.main()
