# SPDX-License-Identifier: GPL-2.0-or-later
"""The edit cycle: apply, sync, prepare, export, series, stat."""
import json
import os

from . import fold, mail, own as own_files, sync
from .git import SeriesError, file_entry, say, warn, write_file
from .mail import Patch
from .tree import BASE_REF, BRANCH, DISCARD

DIFF = ('-r', '--no-renames', '--no-ext-diff', '--no-textconv', '--no-color',
        '--full-index', '--binary', '-U3', '--diff-algorithm=myers',
        '--indent-heuristic', '--src-prefix=a/', '--dst-prefix=b/')


class Series:
    """patches/ and own files, folded on the base; nothing is moved."""

    def __init__(self, tree, base=None):
        self.tree = tree
        self.base = base or tree.current_base()
        self.contents = fold.patch_bytes(tree.root)
        self.patches = fold.load(self.contents)
        self.owner = own_files.owners(self.patches)

    def fold(self, own, sources):
        self.own = own
        self.folded = fold.Folder(self.tree).fold(self.base, self.patches,
                                                  own, sources)
        self.tip = self.folded[-1].commit if self.folded else self.base
        return self

    def fold_here(self):
        """Fold with the own files as they are here."""
        own = own_files.scan(self.tree.root)
        root = self.tree.root
        return self.fold(own, {p: own_files.own_path(root, p) for p in own})

    def record(self, contents=None):
        """What build/tree's record will say after a move to this series."""
        hashes = fold.hashes(contents or self.contents)
        owned = {p: e for p, e in self.own.items() if p in self.owner}
        return {'base': self.base, 'stamp': self.tree.base_stamp()
                or self.tree.state['stamp'], 'patches': hashes,
                'folded': owned}


def hook_diff(git, parent, commit, own, complete=False):
    """Diffstat and diff of a commit, of hooks only or complete."""
    touched = [path for path, _, _ in git.changes(parent, commit)]
    hooks = [path for path in touched if complete or path not in own]
    if not hooks:
        return b''
    # A path would also name what is below it; hence the second list.
    paths = [f':(literal){path}' for path in hooks]
    paths += [f':(exclude,literal){path}' for path in touched
              if path not in hooks]
    return git.run('diff-tree', '--patch-with-stat', '--summary', '--stat=72',
                   *DIFF, parent, commit, '--', *paths,
                   env={'GIT_LITERAL_PATHSPECS': '0'}).stdout


def folded_mails(series, complete):
    """Return {name: mail} of a folded series."""
    git, total, mails = series.tree.git, len(series.folded), {}
    for number, item in enumerate(series.folded, 1):
        patch = item.patch
        shown = Patch(patch.name, patch.message, patch.date, hook_diff(
            git, item.parent, item.commit, series.own, complete))
        name = mail.patch_name(number, patch.subject)
        mails[name] = mail.render(shown, *([number, total] if complete else []))
    return mails


def require_clean(tree, own):
    """Refuse to overwrite edits of files that are not own files."""
    changed, _ = tree.status()
    edited = [path for path in changed if path not in own]
    if edited:
        raise SeriesError('build/tree has changes that are not committed: '
                          f"{', '.join(edited)}: commit them there and "
                          f'{DISCARD}')


def require_exported(tree):
    if tree.tip() != tree.state['tip']:
        raise SeriesError('build/tree has commits that are not exported: '
                          f'{unexported(tree)}: {DISCARD}')


def unexported(tree):
    old, new = tree.state['tip'], tree.tip()
    if not old or not new:
        return 'branch series has no record'
    rows = tree.git.out('log', '--format=%h %s', '--max-count=5',
                        f'{old}..{new}')
    return ', '.join(rows.split('\n')) if rows else 'branch series was moved'


def warn_unowned(own, owner):
    loose = sorted(set(own) - set(owner))
    if loose:
        names = [own_files.shown(path) for path in loose]
        warn(f"owned by no patch yet: {', '.join(names)}")


def make_plan(tree, **kwargs):
    """The plan of a sync; refuses what must not be carried."""
    plan = sync.plan(tree, **kwargs)
    fold.check_upstream(tree.git, BASE_REF, (
        set(plan.own) | set(plan.conflicts)) - set(tree.state['own']))
    sync.require_no_conflict(plan)
    return plan


def apply(tree, discard=False):
    """Make build/tree equal to patches/ and the own files."""
    if discard and tree.exists():
        tree.load()
        tree.discard()
    tree.open()
    tree.require_idle()
    require_exported(tree)
    plan = make_plan(tree, force=discard)
    require_clean(tree, plan.own)
    series = Series(tree).fold(plan.own, plan.sources)
    tree.require_free(tree.tip(), series.tip, plan.own)
    sync.carry_here(tree, plan)
    warn_unowned(plan.own, series.owner)
    finish_apply(tree, series, plan)


def finish_apply(tree, series, plan):
    for item in series.folded:
        for offset in item.offsets:
            warn(f'{item.patch.name}: {offset}: scripts/series export')
    if series.tip == tree.state['tip'] and plan.own == tree.state['own'] \
            and series.record().items() <= tree.state.items() \
            and not plan.to_tree:
        say(f'build/tree is up to date ({len(series.folded)} patches)')
        return
    tree.state.pop('exporting', None)
    count = tree.move(series.tip, plan.own, **series.record())
    say(f'applied {len(series.folded)} patches to build/tree, '
        f'{count} files written')


def sync_files(tree):
    """Carry own files both ways; leave the branch alone."""
    tree.open()
    tree.require_idle()
    plan = make_plan(tree)
    sync.require_no_drop(tree, plan)
    count = sync.run(tree, plan)
    if count:
        say(f'{count} own files written to build/tree')
    warn_unowned(plan.own, own_files.owners(
        fold.load(fold.patch_bytes(tree.root))))
    hint_untracked(tree, plan.own)


def hint_untracked(tree, own):
    extra = [path for path in tree.status()[1] if path not in own]
    if extra:
        names = ', '.join(extra[:5]) + (', ...' if len(extra) > 5 else '')
        say(f'hint: new in build/tree and in no commit: {names}')


def prepare(tree):
    """What a build needs: apply when patches/ or the base changed, else
    sync; a tree in the middle of a rebase is built as it is."""
    if not tree.exists():
        return apply(tree)
    tree.load()
    if not tree.state.get('pending') and tree.busy():
        warn(f'{tree.busy()}: building it as it is{left_out(tree)}')
        return None
    now = fold.hashes(fold.patch_bytes(tree.root))
    stamp = tree.base_stamp() or tree.state['stamp']
    if tree.state.get('pending') or now != tree.state['patches'] \
            or stamp != tree.state['stamp']:
        return apply(tree)
    return sync_files(tree)


def left_out(tree):
    """Name the own files here that a build of build/tree does not see."""
    here, last = own_files.scan(tree.root), tree.state['own']
    differ = [path for path in set(here) | set(last)
              if here.get(path) != file_entry(tree.file(path))]
    # First what was edited here, then what only differs on that branch.
    differ.sort(key=lambda path: (here.get(path) == last.get(path), path))
    if not differ:
        return ''
    names = ', '.join(own_files.shown(path) for path in differ[:10])
    more = f' and {len(differ) - 10} more' if len(differ) > 10 else ''
    return f'; not in this build, as they are here: {names}{more}'


def write_series(tree):
    """Write the complete patches, own files included, for git am."""
    tree.open()
    series = Series(tree).fold_here()
    mails = folded_mails(series, complete=True)
    write_folder(os.path.join(tree.root, 'build', 'series'), mails,
                 os.path.join(tree.root, 'build', 'scratch'))
    say(f'{len(mails)} patches are in build/series: git am --keep-cr '
        'build/series/*.patch')


def write_folder(folder, mails, scratch):
    """Make the patches of a folder these; return (written, removed)."""
    os.makedirs(folder, exist_ok=True)
    written, removed = [], []
    for name, data in mails.items():
        path = os.path.join(folder, name)
        entry = ('100644', '')
        if not os.path.exists(path) or open_bytes(path) != data:
            write_file(path, entry, data, scratch)
            written.append(name)
    for name in sorted(os.listdir(folder)):
        if mail.PATCH_NAME.match(name) and name not in mails:
            os.unlink(os.path.join(folder, name))
            removed.append(name)
    return written, removed


def open_bytes(path):
    with open(path, 'rb') as stream:
        return stream.read()


# export

def export(tree):
    """Write the commits of build/tree to patches/, own files to src/."""
    tree.open()
    tree.require_idle()
    disk = fold.hashes(fold.patch_bytes(tree.root))
    require_patches_untouched(tree, disk)
    commits = tree.commits()
    base = tree.git.resolve(BASE_REF)
    patches = [patch_of(*row) for row in commits]
    named = {path for patch in patches for path in patch.files()}
    fresh = new_in_tree(tree, base, named)
    plan = make_plan(tree, extra=fresh)
    require_clean(tree, plan.own)
    check_export(tree, commits, patches, plan.own, fresh)
    series, mails = refold(tree, base, commits, patches, plan)
    tree.save(exporting=fold.hashes(mails))
    sync.carry_here(tree, plan)
    written, removed = write_folder(os.path.join(tree.root, 'patches'), mails,
                                    os.path.join(tree.root, 'build', 'scratch'))
    tree.state.pop('exporting')
    # The base stays; with its old stamp the next apply notices a new one.
    record = {**series.record(mails), 'stamp': tree.state['stamp']}
    tree.move(series.tip, plan.own, **record)
    warn_unowned(plan.own, series.owner)
    report_export(mails, written, removed)


def report_export(mails, written, removed):
    for name in written:
        say(f'wrote patches/{name}')
    for name in removed:
        say(f'removed patches/{name}')
    if not written and not removed:
        say(f'patches/ is up to date ({len(mails)} patches)')


def require_patches_untouched(tree, disk):
    """Refuse to overwrite patches that were edited or deleted since the last
    apply, unless by an export that was interrupted."""
    allowed = [tree.state['patches']]
    if 'exporting' in tree.state:
        allowed.append(tree.state['exporting'])
    changed = [name for name in sorted(set(disk) | set(allowed[0]))
               if disk.get(name) not in [a.get(name) for a in allowed]]
    if changed and tree.state['tip']:
        names = ', '.join(f'patches/{name}' for name in changed)
        raise SeriesError(f'{names} changed or deleted since the last apply; '
                          'export would overwrite that: scripts/series apply '
                          'first')


def patch_of(sha, _parent, date, message):
    patch = Patch(f'commit {sha[:12]}', message, date)
    if patch.subject.startswith(('fixup!', 'squash!', 'amend!')):
        raise SeriesError(f'{patch.name} is "{patch.subject}": git -C '
                          'build/tree rebase -i --autosquash refs/hotpath/base')
    why = mail.message_problem(patch)
    if why:
        raise SeriesError(f'{patch.name} ("{patch.subject}") {why}')
    return patch


def new_in_tree(tree, base, named):
    """The files of the branch that neither upstream nor src/ has, and the
    files that are only in the work tree but named by a commit."""
    added = {path for path, old, new in tree.git.changes(base, BRANCH)
             if old is None and new is not None}
    upstream = tree.git.entries(base, named)
    added |= {path for path in named if not upstream[path]}
    known = set(tree.state['own'])
    return sorted(path for path in added - known
                  if file_entry(tree.file(path)))


def check_export(tree, commits, patches, own, fresh):
    owner = own_files.owners(patches)
    own_files.check_owners(owner, own)
    for path in fresh:
        if path in owner:
            own_files.check_name(path, path)
            continue
        sha = adder(tree, commits, path)
        raise SeriesError(f'commit {sha[:12]} adds {path}, which is named by '
                          f'no commit: add the line "Files: {path}" to the '
                          'end of the message (git commit --amend)')
    for (sha, parent, _, _), patch in zip(commits, patches):
        touched = [p for p, _, _ in tree.git.changes(parent, sha)]
        if not patch.files() and not set(touched) - set(own):
            what = 'touches own files only' if touched else 'is empty'
            raise SeriesError(
                f'{patch.name} ("{patch.subject}") {what} and names none on '
                'a Files: line: squash it into the commit that owns them '
                '(git -C build/tree rebase -i refs/hotpath/base)')


def adder(tree, commits, path):
    for sha, parent, _, _ in commits:
        if path in [p for p, old, _ in tree.git.changes(parent, sha)
                    if old is None]:
            return sha
    return commits[-1][0]


def refold(tree, base, commits, patches, plan):
    """Fold what is about to be exported, and prove that it is the branch."""
    contents = {}
    for number, ((sha, parent, _, _), patch) in enumerate(
            zip(commits, patches), 1):
        patch.diff = hook_diff(tree.git, parent, sha, plan.own)
        contents[mail.patch_name(number, patch.subject)] = mail.render(patch)
    if len(contents) != len(commits):
        raise SeriesError('two commits would have the same file name: give '
                          'them different subjects')
    series = Series.__new__(Series)
    series.tree, series.base, series.contents = tree, base, contents
    series.patches = fold.load(contents)
    for new, old in zip(series.patches, patches):
        if new.message != old.message:
            raise SeriesError(f'{old.name} ("{old.subject}") has a message '
                              'that does not survive the mail: simplify it')
    series.owner = own_files.owners(series.patches)
    series.fold(plan.own, plan.sources)
    lost = [path for path, _, _ in tree.git.changes(BRANCH, series.tip)
            if path not in plan.own and path not in tree.state['own']]
    if lost:
        raise SeriesError('the export would not reproduce branch series in '
                          f"{', '.join(lost)} (nothing was written)")
    return series, contents


# stat

def figures(series):
    """Return a row per patch: hook lines, hooked files, own files, lines."""
    rows, git = [], series.tree.git
    for item in series.folded:
        mine = item.patch.files()
        plus = minus = hooked = own_lines = 0
        for line in git.fields('diff-tree', '-r', '-z', '--numstat',
                               '--no-renames', item.parent, item.commit):
            added, removed, path = line.split('\t', 2)
            added, removed = [int(n) if n.isdigit() else 0
                              for n in (added, removed)]
            if path in mine:
                own_lines += added
            else:
                plus, minus, hooked = plus + added, minus + removed, hooked + 1
        rows.append({'patch': item.patch.name, 'hook_added': plus,
                     'hook_removed': minus, 'files_hooked': hooked,
                     'own_files': len(mine), 'own_lines': own_lines})
    return rows


def totals(rows):
    keys = ('hook_added', 'hook_removed', 'files_hooked', 'own_files',
            'own_lines')
    total = {key: sum(row[key] for row in rows) for key in keys}
    hook = total['hook_added'] + total['hook_removed']
    everything = hook + total['own_lines']
    total['hook_lines'] = hook
    total['hook_share'] = round(hook / everything, 4) if everything else 0.0
    return total


def print_stat(tree, as_json):
    tree.open()
    rows = figures(Series(tree).fold_here())
    total = totals(rows)
    if as_json:
        print(json.dumps({'patches': rows, 'total': total}, indent=1))
        return
    layout = '{:<58.58} {:>6} {:>6} {:>6} {:>5} {:>7}'
    print(layout.format('patch', 'hook+', 'hook-', 'hooked', 'own',
                        'lines'))
    for row in rows:
        print(layout.format(*row.values()))
    print(layout.format('total', *[total[k] for k in (
        'hook_added', 'hook_removed', 'files_hooked', 'own_files',
        'own_lines')]))
    print(f"hook lines are {total['hook_lines']} of "
          f"{total['hook_lines'] + total['own_lines']}, "
          f"{100 * total['hook_share']:.1f} % (budget 20 %)")
