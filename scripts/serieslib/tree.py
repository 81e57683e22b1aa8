# SPDX-License-Identifier: GPL-2.0-or-later
"""build/tree: the repository, what was last recorded of it, and its update."""
import contextlib
import fcntl
import json
import os
import shutil
import time

from . import own as own_files
from .git import (Git, SeriesError, decode, encode, file_bytes, file_entry,
                  parse_raw, remove_file, say, write_file)

BASE_REF = 'refs/hotpath/base'
SAVED = 'refs/hotpath/saved'
BRANCH = 'refs/heads/series'
BASE_DATE = '946684800 +0000'
# bzip2's stream of nothing: what scripts/fetch-base puts where the
# distribution's sources lack an edk2 image.
PLACEHOLDER = b'BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00'
FOLDER = ('040000', '')         # what file_entry() says of one
IN_PROGRESS = {'rebase-merge': 'rebase', 'rebase-apply': 'rebase or am',
               'MERGE_HEAD': 'merge', 'CHERRY_PICK_HEAD': 'cherry-pick',
               'REVERT_HEAD': 'revert', 'BISECT_LOG': 'bisect'}
DISCARD = ('say "scripts/series export" (make export) to keep that, or '
           '"scripts/series apply --discard" to save it under '
           'refs/hotpath/saved and start from patches/ and src/')


@contextlib.contextmanager
def locked(root):
    """Keep two runs of this tool apart."""
    os.makedirs(os.path.join(root, 'build'), exist_ok=True)
    with open(os.path.join(root, 'build', '.series.lock'), 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('waiting for another run of scripts/series')
            fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(os.path.join(root, 'build', 'scratch'),
                      ignore_errors=True)
        yield


def placeholders(folder):
    """The paths of the empty edk2 images in a source tree."""
    blobs = os.path.join(folder, 'pc-bios')
    names = sorted(os.listdir(blobs)) if os.path.isdir(blobs) else []
    found = []
    for name in names:
        if name.startswith('edk2-') and name.endswith('.fd.bz2'):
            path = os.path.join(blobs, name)
            if os.path.getsize(path) == len(PLACEHOLDER) \
                    and file_bytes(path) == PLACEHOLDER:
                found.append(f'pc-bios/{name}')
    return found


def is_leaf(path):
    """Whether there is something that is no folder."""
    return os.path.islink(path) or os.path.isfile(path)


def files_below(top, path):
    """The files and links in a folder, as paths below top."""
    found = []
    for folder, folders, names in os.walk(os.path.join(top, path)):
        here = [os.path.join(folder, name) for name in names + folders]
        found += [os.path.relpath(p, top) for p in here if is_leaf(p)]
    return found


def import_tree(git, folder):
    """Commit a directory of sources; the same content gives the same id."""
    folder = os.path.realpath(folder)
    if not os.path.isfile(os.path.join(folder, 'VERSION')):
        raise SeriesError(f'{folder} is no QEMU source tree: it has no VERSION')
    with open(os.path.join(folder, 'VERSION')) as stream:
        version = stream.read().strip()
    scratch = os.path.join(git.gitdir, 'hotpath', f'import.{os.getpid()}')
    os.makedirs(os.path.dirname(scratch), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(scratch)
    work = Git(git.gitdir, folder, scratch, git.objects)
    try:
        excluded = [f':(exclude,literal){p}' for p in placeholders(folder)]
        work.run('add', '-A', '-f', '--', '.', *excluded,
                 env={'GIT_LITERAL_PATHSPECS': '0'})
        for row in work.fields('ls-files', '-s', '-z'):
            if row.startswith('160000'):
                path = row.split('\t', 1)[1]
                raise SeriesError(f'{folder}/{path} is a git repository of '
                                  'its own: remove its .git')
        tree = work.out('write-tree')
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
    return commit(git, tree, None, f'base: QEMU {version}\n', BASE_DATE)


def commit(git, tree, parent, message, date):
    """Make a commit whose id depends on its arguments only."""
    parents = ['-p', parent] if parent else []
    return git.out('commit-tree', tree, *parents, '-F', '-',
                   data=encode(message),
                   env={'GIT_AUTHOR_DATE': f'@{date}',
                        'GIT_COMMITTER_DATE': f'@{date}'})


class Tree:
    """build/tree and the record in its .git/hotpath/state.json.

    The record: ``base``, ``stamp`` (origin of the base), ``tip`` (the branch
    as this tool left it), ``patches`` {name: hash}, ``own`` {path: entry} as
    last synced, ``folded`` {path: entry} as in the tip, and while an update
    runs ``pending``, the record as it will be.
    """

    def __init__(self, root):
        self.root = os.path.abspath(root)
        self.base_dir = os.path.join(self.root, 'build', 'base', 'tree')
        self.place(os.path.join(self.root, 'build', 'tree'))

    def place(self, path):
        self.path = path
        self.git = Git(os.path.join(path, '.git'), path)
        self.private = os.path.join(path, '.git', 'hotpath')
        self.scratch = os.path.join(self.private, 'scratch')

    def file(self, path):
        return os.path.join(self.path, path)

    # The record

    def exists(self):
        return os.path.isdir(os.path.join(self.path, '.git'))

    def load(self):
        try:
            with open(os.path.join(self.private, 'state.json')) as stream:
                state = json.load(stream)
        except (FileNotFoundError, ValueError):
            state = {}
        self.state = {'base': None, 'stamp': None, 'tip': None, 'patches': {},
                      'own': {}, 'folded': {}, **state}
        for key in ('own', 'folded'):
            self.state[key] = as_entries(self.state[key])

    def save(self, **changes):
        self.state.update(changes)
        os.makedirs(self.private, exist_ok=True)
        path = os.path.join(self.private, 'state.json')
        with open(path + '.part', 'w') as out:
            json.dump(self.state, out, indent=1, sort_keys=True)
            out.flush()
            os.fsync(out.fileno())
        os.replace(path + '.part', path)

    # Creation and base

    def base_stamp(self):
        """What identifies build/base/tree; None when it is absent."""
        stamp = ''
        for name in ('../tree.origin', 'VERSION'):
            with contextlib.suppress(OSError), \
                    open(os.path.join(self.base_dir, name)) as stream:
                stamp += stream.read()
        return stamp or None

    def open(self):
        """Open build/tree; create it at the base when it is absent."""
        if not self.exists():
            self.create()
        self.load()
        self.recover()

    def create(self):
        if not self.base_stamp():
            raise SeriesError('there is no build/base/tree: '
                              'run scripts/fetch-base (make tree) first')
        if os.path.lexists(self.path):
            raise SeriesError(f'{self.path} is not a repository of this tool: '
                              'move it away')
        final, new = self.path, f'{self.path}.new'
        shutil.rmtree(new, ignore_errors=True)
        say('importing the base sources into build/tree (about 30 seconds)')
        self.place(new)
        self.git.init()
        base = import_tree(self.git, self.base_dir)
        self.git.run('update-ref', BASE_REF, base)
        self.git.run('update-ref', BRANCH, base)
        self.git.run('read-tree', '--reset', '-u', base)
        self.copy_placeholders()
        self.load()
        self.save(base=base, stamp=self.base_stamp(), tip=base)
        os.rename(new, final)
        self.place(final)

    def copy_placeholders(self):
        paths = placeholders(self.base_dir)
        for path in paths:
            if not os.path.lexists(self.file(path)):
                write_file(self.file(path), ('100644', ''), PLACEHOLDER,
                           self.scratch)
        with open(os.path.join(self.git.gitdir, 'info', 'exclude'), 'w') as out:
            out.writelines(f'/{path}\n' for path in paths)

    def current_base(self):
        """The base commit of build/base/tree, imported when it changed."""
        stamp = self.base_stamp()
        if self.state['base'] and stamp in (None, self.state['stamp']):
            return self.state['base']
        say('build/base/tree changed: importing it (about 30 seconds)')
        return import_tree(self.git, self.base_dir)

    # What the user did there

    def tip(self):
        return self.git.resolve(BRANCH)

    def busy(self):
        """Why the branch must not be touched now; None if it may."""
        for name, what in IN_PROGRESS.items():
            if os.path.lexists(os.path.join(self.git.gitdir, name)):
                return f'build/tree is in the middle of a {what}'
        head = decode(self.git.run('symbolic-ref', '-q', 'HEAD',
                                   check=False).stdout).strip()
        if head != BRANCH:
            where = head.replace('refs/heads/', 'on branch ') or 'detached'
            return f'HEAD of build/tree is {where}, not on branch series'
        return None

    def require_idle(self):
        why = self.busy()
        if why:
            raise SeriesError(f'{why}: finish that first '
                              '(git -C build/tree status; git switch series)')

    def require_free(self, old, new, own):
        """Refuse to overwrite files of the user on the way from commit old to
        new; what becomes of own files is for sync to decide."""
        changes = [row for row in self.git.changes(old, new)
                   if row[0] not in own]
        gone = {path for path, _, entry in changes if entry is None}
        ours = gone | set(placeholders(self.path)) | set(self.state['own'])
        found = {name for path, was, entry in changes if entry and not was
                 for name in self.in_way(path, entry) if name not in ours}
        if found:
            names = ', '.join(f'build/tree/{name}' for name in sorted(found))
            raise SeriesError(f'{names}: in no commit, and the new base has a '
                              'file there: move it away')

    def in_way(self, path, entry):
        """Yield the files that are in the way of this one: another at path,
        those in a folder at path, a file where path has a folder."""
        have = file_entry(self.file(path))
        if have == FOLDER:
            yield from files_below(self.path, path) or [path]
        elif have not in (None, entry):
            yield path
        above = os.path.dirname(path)
        while above:
            if is_leaf(self.file(above)):
                yield above
            above = os.path.dirname(above)

    def status(self):
        """Return (changed files, untracked files) of the work tree."""
        changed, untracked = [], []
        for row in self.git.fields('status', '--porcelain=v1', '-z',
                                   '--no-renames', '--untracked-files=all'):
            (untracked if row[:2] == '??' else changed).append(row[3:])
        return changed, untracked

    def save_user_state(self):
        """Commit all that is in the work tree to refs/hotpath/saved."""
        head = self.git.resolve('HEAD') or self.state['base']
        index = os.path.join(self.private, 'index.save')
        real = os.path.join(self.git.gitdir, 'index')
        if os.path.exists(real):
            shutil.copyfile(real, index)
        git = self.git.with_index(index)
        git.run('add', '-A')
        # Even where an ignore rule of upstream names them.
        own = {*self.state['own'], *own_files.scan(self.root)}
        own = sorted(p for p in own if os.path.lexists(self.file(p)))
        if own:
            git.run('add', '-f', '--', *own)
        tree = git.out('write-tree')
        os.unlink(index)
        if tree != self.git.out('rev-parse', f'{head}^{{tree}}'):
            now = f'{int(time.time())} +0000'
            head = commit(self.git, tree, head, 'work tree, saved\n', now)
        self.keep(head, 'the state of build/tree')
        tip = self.tip()
        if tip and not self.is_ancestor(tip, head):
            self.keep(tip, 'branch series')

    def is_ancestor(self, old, new):
        return self.git.run('merge-base', '--is-ancestor', old, new,
                            check=False).returncode == 0

    def keep(self, target, what):
        """Keep a commit alive under refs/hotpath/saved."""
        stamp = time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())
        ref, number = f'{SAVED}/{stamp}', 1
        while self.git.resolve(ref):
            number += 1
            ref = f'{SAVED}/{stamp}-{number}'
        self.git.run('update-ref', ref, target)
        say(f'saved {what} as {ref}')

    def keep_files(self, paths):
        """Keep own files that are about to be deleted here."""
        index = os.path.join(self.private, 'index.keep')
        with contextlib.suppress(FileNotFoundError):
            os.unlink(index)
        git = self.git.with_index(index)
        self.add_to_index(git, {p: file_entry(own_files.own_path(self.root, p))
                                for p in paths},
                          {p: own_files.own_path(self.root, p) for p in paths})
        tree = git.out('write-tree')
        os.unlink(index)
        now = f'{int(time.time())} +0000'
        self.keep(commit(self.git, tree, None, 'deleted own files\n', now),
                  f"{len(paths)} deleted own file(s) ({', '.join(paths)})")

    def discard(self):
        """Save what the user did, then go back to the recorded tip."""
        self.save_user_state()
        for name, what in (('rebase-merge', 'rebase'), ('rebase-apply', 'am'),
                           ('MERGE_HEAD', 'merge'), ('REVERT_HEAD', 'revert'),
                           ('CHERRY_PICK_HEAD', 'cherry-pick')):
            if os.path.lexists(os.path.join(self.git.gitdir, name)):
                self.git.run(what, '--quit', check=False)
        for name in list(IN_PROGRESS) + ['AUTO_MERGE']:
            path = os.path.join(self.git.gitdir, name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.lexists(path):
                os.unlink(path)
        tip = self.git.resolve(f"{self.state['tip']}^{{commit}}")
        tip = tip or self.git.resolve(BASE_REF)
        self.git.run('symbolic-ref', 'HEAD', BRANCH)
        self.git.run('reset', '-q', '--hard', tip)
        changed = {'tip': tip}
        if not self.state['base']:
            changed['base'] = self.git.resolve(BASE_REF)
        for unfinished in ('pending', 'exporting'):
            self.state.pop(unfinished, None)
        self.save(**changed)

    # Own files and objects

    def add_blobs(self, sources):
        """Write files to the object store as they are; {path: file}."""
        plain = []
        for source in sources.values():
            if os.path.islink(source):
                self.git.run('hash-object', '-w', '-t', 'blob', '--stdin',
                             data=file_bytes(source))
            else:
                plain.append(source)
        if plain:
            self.git.run('hash-object', '-w', '--no-filters', '--stdin-paths',
                         data=os.fsencode('\n'.join(plain) + '\n'))

    def add_to_index(self, git, entries, sources=None):
        if sources:
            self.add_blobs(sources)
        rows = [f'{mode} {sha}\t{path}\0'
                for path, (mode, sha) in sorted(entries.items())]
        git.run('update-index', '-z', '--index-info',
                data=encode(''.join(rows)))

    # The update

    def move(self, new, own, **record):
        """Move branch, index and work tree to commit new, in steps that can
        be repeated: an interrupted move is completed by recover()."""
        pending = {'new': new, 'old': self.tip(), 'own': own, **record}
        self.save(pending=pending)
        return self.finish_move()

    def wanted(self, pending):
        """Return {path: entry} of what a move may have to write."""
        # An own file that is none any more goes, unless upstream has it now.
        want = dict.fromkeys(self.state['own'])
        want.update((path, entry) for path, _, entry in
                    self.git.changes(pending['old'], pending['new']))
        want.update(as_entries(pending['own']))
        return want

    def finish_move(self):
        pending = self.state['pending']
        count = self.write(self.wanted(pending))
        self.git.run('update-ref', '-m', 'scripts/series', BRANCH,
                     pending['new'])
        self.git.run('read-tree', '--reset', pending['new'])
        self.git.run('update-index', '-q', '--refresh', check=False)
        if pending['base'] != self.state['base']:
            self.copy_placeholders()
        self.git.run('update-ref', BASE_REF, pending['base'])
        self.state.pop('pending')
        self.save(base=pending['base'], stamp=pending['stamp'],
                  tip=pending['new'], patches=pending['patches'],
                  own=as_entries(pending['own']),
                  folded=as_entries(pending['folded']))
        return count

    def write(self, want):
        """Bring files of the work tree to these entries; leave the others,
        and those that are right already, with their times."""
        todo = {path: entry for path, entry in want.items()
                if file_entry(self.file(path)) != entry}
        for path in sorted(p for p, entry in todo.items() if entry is None):
            remove_file(self.file(path), self.path)
        blobs = self.git.blobs(e[1] for e in todo.values() if e)
        for path, entry in sorted(todo.items()):
            if entry:
                write_file(self.file(path), entry, blobs[entry[1]],
                           self.scratch)
        return len(todo)

    def recover(self):
        """Complete a move that was interrupted; lose nothing edited since."""
        pending = self.state.get('pending')
        if not pending:
            return
        say('completing an update of build/tree that was interrupted')
        lock = os.path.join(self.git.gitdir, 'index.lock')
        if os.path.exists(lock):
            time.sleep(2)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lock)
        edited = self.edited_since(pending)
        if self.busy() or self.tip() not in (pending['old'], pending['new']):
            edited.insert(0, 'branch series')
        if edited:
            self.state.pop('pending')
            self.save()
            raise SeriesError('an update of build/tree was interrupted, and '
                              f"then edited: {', '.join(edited)}: {DISCARD}")
        self.finish_move()

    def edited_since(self, pending):
        want = self.wanted(pending)
        old = {path: entry for path, entry, _ in
               self.git.changes(pending['old'], pending['new'])}
        edited = []
        for path, entry in sorted(want.items()):
            have = file_entry(self.file(path))
            if have not in (entry, old.get(path), self.state['own'].get(path)):
                edited.append(path)
        return edited

    # Commits

    def commits(self):
        """Return [(commit, parent, date, message)] from base to tip."""
        base, tip = self.git.resolve(BASE_REF), self.tip()
        if not self.is_ancestor(base, tip):
            raise SeriesError('branch series does not stand on the base '
                              f'{base[:12]}: git -C build/tree rebase --onto '
                              'refs/hotpath/base OLD-BASE series')
        rows = self.git.fields('log', '-z', '--reverse', '--topo-order',
                               '--date=raw', '--format=%H%n%P%n%ad%n%B',
                               f'{base}..{tip}')
        found = []
        for row in rows:
            sha, parents, date, message = row.split('\n', 3)
            if len(parents.split()) != 1:
                raise SeriesError(f'commit {sha[:12]} is a merge: a series is '
                                  'linear, rebase it')
            found.append((sha, parents, date, message))
        return found

    def changed_here(self):
        """(path, entry in HEAD, entry in the work tree) of tracked files."""
        return parse_raw(self.git.fields('diff-index', '-z', '--raw',
                                         '--no-renames', '--no-abbrev', 'HEAD'))


def as_entries(mapping):
    """JSON has no tuples: turn {path: [mode, id]} back."""
    return {path: tuple(entry) for path, entry in mapping.items()}
