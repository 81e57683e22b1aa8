# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/series export, and what git would like to alter on the way."""
import os
import subprocess
import unittest

from support import BASE, REPOSITORY, SPDX, UPSTREAM, Project, message

HOSTILE = '''\
[user]
\tname = Somebody Else
\temail = else@example.invalid
[core]
\tautocrlf = true
\tsafecrlf = true
\teol = crlf
\tquotePath = true
\thooksPath = {home}/hooks
\tattributesFile = {home}/attributes
\texcludesFile = {home}/excludes
\twhitespace = tab-in-indent,blank-at-eol
\tabbrev = 40
\tpager = false
[commit]
\tgpgSign = true
[gpg]
\tprogram = false
[init]
\tdefaultBranch = trunk
\ttemplateDir = {home}/template
[diff]
\tnoprefix = true
\tmnemonicPrefix = true
\talgorithm = patience
\tcontext = 9
\tinterHunkContext = 9
\trenames = copies
\texternal = false
\tsuppressBlankEmpty = true
\tindentHeuristic = false
\torderFile = {home}/order
\tstatGraphWidth = 5
[format]
\tsignature = hostile
\tpretty = oneline
\tattach = true
\tnumbered = true
\tsubjectPrefix = HOSTILE
[log]
\tshowSignature = true
\tdate = relative
[apply]
\twhitespace = fix
\tignoreWhitespace = change
[am]
\tthreeWay = true
\tkeepcr = false
[mailinfo]
\tscissors = true
[color]
\tui = always
[i18n]
\tcommitEncoding = latin1
\tlogOutputEncoding = latin1
[status]
\tshortc = true
\tbranch = true
\tshowUntrackedFiles = no
[alias]
\tstatus = log
[merge]
\tconflictStyle = diff3
'''


class Export(Project):
    def test_untouched_series_is_written_identically(self):
        before = self.patches()
        times = self.snapshot('patches', 'src', 'tests', 'build/tree')
        self.assertIn('up to date', self.ok('export'))
        self.assertEqual(self.patches(), before)
        self.assertEqual(
            self.snapshot('patches', 'src', 'tests', 'build/tree'), times)

    def test_patches_have_hooks_only(self):
        first = list(self.patches().values())[0].decode()
        self.assertIn('diff --git a/system/meson.build', first)
        self.assertNotIn('diff --git a/system/counter.c', first)
        self.assertIn('\nFiles: system/counter.c\n', first)
        self.assertIn(' 1 file changed, 1 insertion(+)\n', first)

    def test_amended_hook(self):
        self.replace('build/tree/system/memory.c', 'x + 700;', 'x + 701;')
        self.amend()
        self.assertIn('wrote patches/0002', self.ok('export'))
        self.assertIn(b'+    return x + 701;', self.patches()[
            '0002-memory-use-the-counter.patch'])
        self.assertApplies()

    def test_fixup_and_autosquash(self):
        self.replace('build/tree/system/meson.build', "'counter.c'",
                     "'counter.c', 'vl2.c'")
        self.git('commit', '-q', '-a', '--fixup', 'series~1')
        self.refuses('export', naming=['fixup!', 'autosquash'])
        self.git('rebase', '-q', '-i', '--autosquash', BASE)
        self.ok('export')
        self.assertIn(b'vl2.c', list(self.patches().values())[0])
        self.assertApplies()

    def test_new_commit(self):
        self.replace('build/tree/system/vl.c', 'int last', 'int hooked')
        self.commit(message('vl: hook the end'))
        self.assertIn('wrote patches/0003-vl-hook-the-end.patch',
                      self.ok('export'))
        self.assertApplies()
        self.assertIn('ok 7', self.run_check(0))

    def test_reordered_and_reworded(self):
        self.replace('build/tree/system/vl.c', 'int last', 'int hooked')
        self.commit(message('vl: hook the end'))
        self.ok('export')
        self.git('rebase', '-q', '-i', BASE, GIT_SEQUENCE_EDITOR=(
            'sed -i "1{h;d};2{G}"'))
        self.amend(message('vl: hook it better'))
        self.ok('export')
        self.assertEqual(list(self.patches()),
                         ['0001-memory-use-the-counter.patch',
                          '0002-system-add-a-counter.patch',
                          '0003-vl-hook-it-better.patch'])
        self.assertApplies()

    def test_own_file_changed_in_a_commit(self):
        self.replace('build/tree/system/counter.c', 'line_3', 'line_x')
        self.replace('build/tree/system/memory.c', 'x + 700;', 'x + 701;')
        self.amend()
        self.ok('export')
        self.assertIn(b'line_x', self.get('src/system/counter.c'))
        self.assertIn('line_x', self.git('show', 'series~1'))
        self.assertNotIn('line_x', self.git('show', 'series'))
        self.assertApplies()

    def test_own_file_edit_that_is_not_committed(self):
        self.replace('build/tree/system/counter.c', 'line_3', 'line_x')
        self.ok('export')
        self.assertEqual(self.git('status', '--porcelain'), '')
        self.assertIn('line_x', self.git('show', 'series~1'))

    def test_refold_leaves_the_work_tree_alone(self):
        self.replace('build/tree/system/counter.c', 'line_3', 'line_x')
        before = self.snapshot('build/tree')
        self.ok('export')
        self.assertEqual(self.snapshot('build/tree'), before)

    def test_new_own_file_of_a_commit_moves_here(self):
        self.put('build/tree/hw/new.c', SPDX)
        self.put('build/tree/tests/qtest/new-test.c', SPDX)
        self.commit(message('hw: add a device', 'hw/new.c',
                            'tests/qtest/new-test.c'))
        self.ok('export')
        self.assertEqual(self.get('src/hw/new.c'), SPDX.encode())
        self.assertEqual(self.get('tests/qtest/new-test.c'), SPDX.encode())
        self.assertNotIn(b'diff --git',
                         self.patches()['0003-hw-add-a-device.patch'])
        self.assertApplies()

    def test_new_own_file_that_is_not_named(self):
        self.put('build/tree/hw/new.c', SPDX)
        self.commit(message('hw: add a device'))
        self.refuses('export', naming=['hw/new.c', 'Files: hw/new.c'])

    def test_new_own_file_that_is_named_but_not_added(self):
        self.replace('build/tree/system/vl.c', 'int last', 'int hooked')
        self.commit(message('vl: hook the end', 'hw/new.c'))
        self.refuses('export', naming=['hw/new.c', 'src/hw/new.c'])
        self.put('build/tree/hw/new.c', SPDX)
        self.ok('export')
        self.assertEqual(self.get('src/hw/new.c'), SPDX.encode())
        self.assertApplies()

    def test_own_file_renamed_in_the_tree(self):
        self.git('mv', 'system/counter.c', 'system/counters.c')
        self.git('commit', '-q', '--fixup', 'series~1')
        self.git('rebase', '-q', '-i', '--autosquash', BASE)
        self.refuses('export', naming=['system/counter.c', 'Files:'])
        self.git('rebase', '-q', '-x', (
            'git log -1 --format=%B | sed "s,system/counter[.]c,'
            'system/counters.c," | git commit -q --amend -F -'), BASE)
        self.ok('export')
        self.assertFalse(self.exists('src/system/counter.c'))
        self.assertTrue(self.exists('src/system/counters.c'))
        self.assertApplies()

    def test_hook_file_renamed_in_the_tree(self):
        """A rename of an upstream file is a deletion and an own file."""
        self.git('mv', 'system/vl.c', 'system/vl-new.c')
        self.commit(message('vl: move it', 'system/vl-new.c'))
        self.ok('export')
        self.assertTrue(self.exists('src/system/vl-new.c'))
        self.assertIn(b'deleted file', self.patches()['0003-vl-move-it.patch'])
        self.assertApplies()
        self.assertIn('ok 7', self.run_check(0))

    def test_commit_with_own_files_only(self):
        self.replace('build/tree/system/counter.c', 'line_3', 'line_x')
        self.commit(message('system: correct the counter'))
        self.refuses('export', naming=['touches own files only', 'squash'])

    def test_empty_commit(self):
        self.commit(message('system: do nothing'))
        self.refuses('export', naming=['is empty', 'do nothing'])

    def test_uncommitted_hook(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.refuses('export', naming=['system/vl.c', 'commit'])

    def test_patch_edited_on_disk_is_not_overwritten(self):
        name = list(self.patches())[1]
        self.replace(f'patches/{name}', 'x + 700;', 'x + 701;')
        self.refuses('export', naming=[name, 'apply first'])

    def test_patch_deleted_on_disk_is_not_written_again(self):
        first, second = self.patches()
        os.unlink(self.path(f'patches/{first}'))
        self.refuses('export', naming=[first, 'deleted', 'apply first'])
        self.put(f'patches/{first}', b'restored otherwise')
        self.refuses('export', naming=[first, 'apply first'])

    def test_merge_commit(self):
        self.git('switch', '-q', '-c', 'side', 'series~1')
        self.replace('build/tree/system/vl.c', 'int vl', 'int side')
        self.commit(message('vl: side'))
        self.git('switch', '-q', 'series')
        self.git('merge', '-q', '--no-ff', '-m', 'merge', 'side')
        self.refuses('export', naming='is a merge')

    def test_commits_beside_the_base(self):
        self.git('checkout', '-q', '--orphan', 'lone')
        self.commit(message('all: start over'))
        self.git('branch', '-f', 'series')
        self.git('switch', '-q', 'series')
        self.refuses('export', naming='does not stand on the base')

    def test_two_commits_with_one_subject(self):
        for text in ('int one', 'int two'):
            self.replace('build/tree/system/vl.c', 'int ', text + ', ')
            self.commit(message('vl: count'))
        self.ok('export')
        self.assertEqual(len(self.patches()), 4)
        self.assertApplies()

    def test_all_commits_dropped(self):
        self.git('reset', '-q', '--hard', BASE)
        self.ok('export')
        self.assertEqual(self.patches(), {})
        self.assertFalse(self.exists('src/system/counter.c'))

    def test_series_is_taken_by_plain_git_am(self):
        self.ok('series')
        folder = self.path('build/series')
        plain = os.path.join(self.home, 'plain')
        subprocess.run(['git', 'clone', '-q', self.path('build/tree'), plain],
                       check=True, stderr=subprocess.DEVNULL)
        run = ['git', '-C', plain, '-c', 'user.name=x', '-c',
               'user.email=x@y.invalid', '-c', 'core.attributesFile=/dev/null']
        subprocess.run([*run, 'checkout', '-q', 'origin/series~2'], check=True)
        subprocess.run([*run, 'am', '-q', '--keep-cr', *sorted(
            os.path.join(folder, n) for n in os.listdir(folder))], check=True)
        trees = [subprocess.run([*run, 'rev-parse', f'{name}^{{tree}}'],
                                check=True, stdout=subprocess.PIPE).stdout
                 for name in ('HEAD', 'origin/series')]
        self.assertEqual(*trees)


class Traps(Project):
    """One hook on each thing that git alters, ends or forgets."""

    def survives(self, text=None):
        """Commit, export, apply from scratch, git am: all the same."""
        self.commit(text or message('hw: try a trap'))
        want = {n: d for n, (d, _) in self.snapshot('build/tree').items()}
        self.ok('export')
        have = {n: d for n, (d, _) in self.snapshot('build/tree').items()}
        self.assertEqual(have, want)
        self.assertEqual(self.git('status', '--porcelain'), '')
        self.assertIn('ok 7 git am reproduces', self.run_check(0))
        tip = self.tip()
        self.git('update-ref', 'refs/heads/series', BASE)
        self.ok('apply', '--discard')
        self.assertEqual(self.tip(), tip)
        have = {n: d for n, (d, _) in self.snapshot('build/tree').items()}
        self.assertEqual(have, want)

    def test_crlf(self):
        self.replace('build/tree/hw/crlf.c', 'int b;\r\n', 'int B;\r\n')
        self.survives()
        self.assertIn(b'+int B;\r\n', list(self.patches().values())[2])

    def test_crlf_to_lf(self):
        self.put('build/tree/hw/crlf.c', b'int a;\nint b;\nint c;\n')
        self.survives()

    def test_no_newline_at_the_end(self):
        self.replace('build/tree/hw/noeol.c', 'int b;', 'int c;')
        self.survives()
        self.assertIn(b'\\ No newline', list(self.patches().values())[2])

    def test_newline_at_the_end_added_and_removed(self):
        self.put('build/tree/hw/noeol.c', UPSTREAM['hw/noeol.c'] + b'\n')
        self.put('build/tree/system/vl.c', UPSTREAM['system/vl.c'][:-1])
        self.survives()

    def test_trailing_blanks_and_tabs(self):
        self.put('build/tree/hw/blanks.c', b'int a;\t \n   \n\t int b;  \n\n'
                 b' \t\nint c; \n\n\n')
        self.survives()

    def test_keyword(self):
        self.put('build/tree/hw/id.ident', b'$Id$ stays\n$Id: 1234 $\n')
        self.survives()

    def test_binary(self):
        self.put('build/tree/hw/blob.bin', bytes(reversed(range(256))))
        self.survives()
        self.assertIn(b'GIT binary patch', list(self.patches().values())[2])

    def test_mode_only(self):
        os.chmod(self.path('build/tree/system/vl.c'), 0o755)
        os.chmod(self.path('build/tree/scripts/run.sh'), 0o644)
        self.survives()
        self.assertTrue(os.access(self.path('build/tree/system/vl.c'),
                                  os.X_OK))

    def test_symbolic_link(self):
        os.unlink(self.path('build/tree/system/link.c'))
        os.symlink('memory.c', self.path('build/tree/system/link.c'))
        self.survives()

    def test_link_becomes_a_file(self):
        os.unlink(self.path('build/tree/system/link.c'))
        self.put('build/tree/system/link.c', b'int real;\n')
        self.survives()

    def test_name_with_blank_and_umlaut(self):
        self.replace('build/tree/docs/n\u00e4me mit.txt', 'two', 'zwei')
        self.survives()
        self.assertIn('diff --git a/docs/n\u00e4me mit.txt'.encode(),
                      list(self.patches().values())[2])

    def test_file_that_upstream_ignores(self):
        self.put('build/tree/hw/ignored.o', b'changed\n')
        self.git('add', '-f', 'hw/ignored.o')
        self.survives()

    def test_deleted_file_and_its_folder(self):
        os.unlink(self.path('build/tree/linux-user/main.c'))
        self.survives()
        self.assertFalse(self.exists('build/tree/linux-user/main.c'))

    def test_umlauts_in_message(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.survives(message('vl: measure \u00b5s \u2026 in caf\u00e9',
                              body='\u00dcber alles \u2014 \u65e5\u672c.'))
        self.assertIn('Subject: [PATCH] vl: measure \u00b5s \u2026'.encode(),
                      list(self.patches().values())[2])

    def test_commit_in_latin1(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.git('add', '-A')
        self.git('-c', 'i18n.commitEncoding=latin1', 'commit', '-q', '-F',
                 self.latin1())
        self.ok('export')
        self.assertIn('caf\u00e9'.encode(), list(self.patches().values())[2])
        self.assertApplies()

    def latin1(self):
        path = os.path.join(self.home, 'message')
        with open(path, 'wb') as out:
            out.write(message('vl: visit a caf\u00e9').encode('latin1'))
        return path

    def test_long_subject_is_not_folded(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        subject = 'vl: ' + 'a very long subject ' * 9 + 'end'
        self.commit(message(subject))
        self.ok('export')
        mail = list(self.patches().values())[2].decode()
        self.assertIn(f'Subject: [PATCH] {subject}\n', mail)
        self.assertApplies()
        text = self.run_check(1)
        self.assertIn('columns', text)
        self.assertIn('\nok 7', text)

    def test_subject_over_two_lines(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.survives(message('vl: do\nit well'))
        self.assertIn(b'[PATCH] vl: do it well\n',
                      list(self.patches().values())[2])

    def test_subject_with_brackets(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.survives(message('vl: treat [x] and [PATCH] alike'))
        self.git('commit', '-q', '--amend', '-m', message('[vl] be mine'))
        self.refuses('export', naming=['[vl] be mine', 'strip'])

    def test_message_lines_that_look_like_mail_but_are_not(self):
        body = ('--- \nFrom the guest one sees more than 12:30 things.\n'
                '----\n--\n>From here\n  diff --git a/x b/x\n  ---\n'
                'index: a\n-- >8 --\nIt works.')
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.survives(message('vl: be mine', body='Why.\n' + body[5:]))

    def test_message_lines_that_end_a_mail_are_refused(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.commit(message('vl: be mine'))
        for line in ('---', '---  ', '--- a/system/vl.c', 'Index: x',
                     'diff --git a/x b/x', 'diff -u a b',
                     'From 0123 Mon Sep 17 00:00:00 2001'):
            self.git('commit', '-q', '--amend', '--cleanup=verbatim', '-m',
                     message('vl: be mine', body=f'Why.\n{line}\nMore.'))
            self.refuses('export', naming=[line.rstrip(), 'git am would'])

    def test_message_that_begins_like_a_header(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.commit(message('vl: be mine', body='From: x <x@y.invalid>\n'))
        self.refuses('export', naming=['begins like a mail header'])

    def test_blank_lines_and_blanks_in_message(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.git('add', '-A')
        self.git('commit', '-q', '--cleanup=verbatim', '-m',
                 '\n\n' + message('vl: be mine', body='One.  \n\n\n\nTwo.\t'))
        self.ok('export')
        self.assertIn(b'\n\nOne.\n\nTwo.\n\nUpstream',
                      list(self.patches().values())[2])
        self.assertApplies()

    def test_dates_and_zones(self):
        for date, shown in (
                ('1700000000 -0930', 'Tue, 14 Nov 2023 12:43:20 -0930'),
                ('1709164800 +1400', 'Thu, 29 Feb 2024 14:00:00 +1400'),
                ('1 +0000', 'Thu, 1 Jan 1970 00:00:01 +0000'),
                ('4000000000 +0545', 'Tue, 2 Oct 2096 12:51:40 +0545')):
            self.replace('build/tree/system/vl.c', 'int ', 'int x, ')
            self.git('add', '-A')
            self.git('commit', '-q', '-m', message(f'vl: on {date[:4]}'),
                     GIT_AUTHOR_DATE=f'@{date}')
            self.ok('export')
            mail = list(self.patches().values())[-1].decode()
            self.assertIn(f'Date: {shown}\n', mail)
            self.assertEqual(self.git('log', '-1', '--format=%ad %cd',
                                      '--date=raw'), f'{date} {date}')
            self.assertApplies()
        self.assertIn('\nok 7', self.run_check())

    def test_author_of_a_commit_becomes_the_project(self):
        self.replace('build/tree/system/vl.c', 'int vl', 'int mine')
        self.git('add', '-A')
        self.git('commit', '-q', '-m', message('vl: be mine'), '--author',
                 'J\u00fcrgen \u00c4 <j@example.invalid>')
        self.ok('export')
        self.assertEqual(self.git('log', '-1', '--format=%an %cn'),
                         'qemu-hotpath qemu-hotpath')
        self.assertApplies()

    def test_file_becomes_a_folder(self):
        os.unlink(self.path('build/tree/linux-user/main.c'))
        self.put('src/linux-user/main.c/inner.c', SPDX)
        self.ok('sync')
        self.survives(message('linux-user: split', 'linux-user/main.c/inner.c'))


class HostileConfiguration(Project):
    """The user's git configuration changes nothing."""

    def setUp(self):
        super().setUp()
        for name, data in (
                ('.gitconfig', HOSTILE.format(home=self.home)),
                ('attributes', '* text eol=crlf ident diff=hostile\n'),
                ('excludes', '*\n'), ('order', '*.h\n'),
                ('template/info/attributes', '* -diff\n'),
                ('.config/git/attributes', '* text eol=crlf ident\n'),
                ('.config/git/ignore', '*.c\n')):
            self.put(f'../{name}', data)
        for hook in ('pre-commit', 'commit-msg', 'applypatch-msg',
                     'post-checkout', 'reference-transaction',
                     'prepare-commit-msg'):
            self.put(f'../hooks/{hook}', '#!/bin/sh\nexit 1\n', 0o755)
            self.put(f'../template/hooks/{hook}', '#!/bin/sh\nexit 1\n',
                     0o755)
        self.hostile(HOME=self.home, LANG='de_DE.UTF-8', TZ='Asia/Tokyo',
                     LC_ALL='de_DE.UTF-8', GIT_CONFIG_COUNT='1',
                     GIT_CONFIG_KEY_0='core.autocrlf',
                     GIT_CONFIG_VALUE_0='true', GIT_EXTERNAL_DIFF='false',
                     GIT_AUTHOR_NAME='Else', GIT_COMMITTER_DATE='1 +0000',
                     GIT_DIFF_OPTS='-u0', COLUMNS='20',
                     XDG_CONFIG_HOME=os.path.join(self.home, '.config'))

    def hostile(self, **env):
        old = dict(os.environ)

        def restore():
            os.environ.clear()
            os.environ.update(old)

        self.addCleanup(restore)
        os.environ.update(env)

    def test_same_ids_and_bytes(self):
        patches, tip = self.patches(), self.tip()
        base = self.snapshot('build/base')
        os.rename(self.path('build/tree'), self.path('build/old'))
        self.ok('apply')
        self.assertEqual(self.tip(), tip)
        self.ok('export')
        self.assertEqual(self.patches(), patches)
        self.assertEqual(self.snapshot('build/base'), base)
        self.assertIn('\nok 7', self.run_check())
        for name, data in UPSTREAM.items():
            if not name.startswith('system/me'):
                self.assertEqual(self.get(f'build/tree/{name}'), data, name)

    def test_developer_commits_under_it(self):
        self.replace('build/tree/hw/crlf.c', 'int b;\r\n', 'int B;\r\n')
        self.put('build/tree/hw/new.c', SPDX)
        self.commit(message('hw: add more', 'hw/new.c'))
        self.ok('export')
        mail = self.patches()['0003-hw-add-more.patch']
        self.assertIn(b'--- a/hw/crlf.c\n+++ b/hw/crlf.c\n', mail)
        self.assertIn(b'\n int a;\r\n-int b;\r\n+int B;\r\n int c;\r\n', mail)
        self.assertTrue(mail.endswith(b'int c;\r\n'))
        self.assertEqual(self.get('src/hw/new.c'), SPDX.encode())
        self.assertApplies()
        self.assertIn('\nok 7', self.run_check())

    def test_configuration_of_the_repository(self):
        for key, value in (('diff.noprefix', 'true'), ('diff.context', '9'),
                           ('diff.suppressBlankEmpty', 'true'),
                           ('core.autocrlf', 'true'), ('core.abbrev', '4'),
                           ('apply.whitespace', 'fix'),
                           ('diff.algorithm', 'patience'),
                           ('diff.renames', 'copies')):
            self.git('config', key, value)
        patches = self.patches()
        self.ok('export')
        self.assertEqual(self.patches(), patches)
        self.assertIn('\nok 7', self.run_check())


class RealCheckpatch(Project):
    def test_with_upstreams_checkpatch(self):
        real = os.path.join(REPOSITORY,
                            'build/base/tree/scripts/checkpatch.pl')
        if not os.path.exists(real):
            self.skipTest('build/base/tree is not there: make tree')
        with open(real, 'rb') as stream:
            self.put('build/tree/scripts/checkpatch.pl', stream.read())
        text = self.run_check(1)
        self.assertIn('not ok 6 checkpatch: 0001', text)
        self.assertIn('WARNING: added, moved or deleted file(s)', text)
        self.put('src/system/counter.c', SPDX + 'int  bad( void ) ;\n')
        self.assertIn('ERROR: space prohibited', self.run_check(1))


if __name__ == '__main__':
    unittest.main()
