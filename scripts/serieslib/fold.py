# SPDX-License-Identifier: GPL-2.0-or-later
"""Fold patches and own files into one commit each, without a work tree."""
import contextlib
import hashlib
import json
import os
import re

from . import own as own_files
from .git import SeriesError, decode, encode, parse_raw
from .mail import PATCH_NAME, parse_mail
from .tree import commit

OFFSET = re.compile(r'^Hunk #(\d+) succeeded at (\d+) \(offset (-?\d+)', re.M)
FAILED = re.compile(r'^error: patch failed: (.*):(\d+)$', re.M)
CORRUPT = re.compile(r'^error: .* at line (\d+)', re.M)


class Folded:
    """One patch as a commit: its parent, and the hunks that moved."""

    def __init__(self, patch, parent, commit_id, offsets):
        self.patch = patch
        self.parent = parent
        self.commit = commit_id
        self.offsets = offsets


def patch_bytes(root):
    """Return {name: content} of patches/, in order."""
    folder = os.path.join(root, 'patches')
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found, numbers = {}, {}
    for name in names:
        if not name.endswith('.patch'):
            continue
        match = PATCH_NAME.match(name)
        if not match:
            raise SeriesError(f'patches/{name}: name it NNNN-slug.patch')
        other = numbers.setdefault(match.group(1), name)
        if other != name:
            raise SeriesError(f'patches/{other} and patches/{name} have the '
                              'same number: which is first? Renumber one')
        with open(os.path.join(folder, name), 'rb') as stream:
            found[name] = stream.read()
    return found


def hashes(contents):
    return {n: hashlib.sha1(data).hexdigest() for n, data in contents.items()}


def load(contents):
    return [parse_mail(name, data) for name, data in contents.items()]


def check_upstream(git, base, own):
    """Refuse an own file that exists upstream."""
    for path, entry in git.entries(base, own).items():
        if entry:
            raise SeriesError(
                f'{own_files.shown(path)}: upstream has {path}: an own file '
                'needs another name, a change of that file is a hook')


class Folder:
    """Folds a series; remembers what it folded before."""

    def __init__(self, tree):
        self.tree = tree
        self.git = tree.git.with_index(
            os.path.join(tree.private, 'index.fold'))
        self.memo_path = os.path.join(tree.private, 'fold.json')
        self.at = None

    def load_memo(self):
        try:
            with open(self.memo_path) as stream:
                memo = json.load(stream)
        except (FileNotFoundError, ValueError):
            return {}
        ids = [entry['commit'] + '^{tree}' for entry in memo.values()]
        if not ids:
            return {}
        rows = self.git.out('cat-file', '--batch-check',
                            data=encode('\n'.join(ids) + '\n')).split('\n')
        gone = {i for i, row in zip(ids, rows) if row.endswith('missing')}
        return {k: e for k, e in memo.items()
                if e['commit'] + '^{tree}' not in gone}

    def fold(self, base, patches, own, sources):
        """Return a Folded per patch.  Nothing but objects is written."""
        owner = own_files.owners(patches)
        own_files.check_owners(owner, own)
        check_upstream(self.git, base, own)
        self.tree.add_blobs(sources)
        memo, used, parent, folded = self.load_memo(), {}, base, []
        for patch in patches:
            mine = {path: own[path] for path in patch.files()}
            key = fold_key(parent, patch, mine)
            if key not in memo:
                offsets = self.apply(parent, patch, own)
                memo[key] = {'commit': self.commit(parent, patch, mine),
                             'offsets': offsets}
            used[key] = memo[key]
            folded.append(Folded(patch, parent, memo[key]['commit'],
                                 memo[key]['offsets']))
            parent = memo[key]['commit']
        self.save_memo(used)
        return folded

    def save_memo(self, memo):
        with open(self.memo_path + '.part', 'w') as out:
            json.dump(memo, out)
        os.replace(self.memo_path + '.part', self.memo_path)

    def apply(self, parent, patch, own):
        """Apply the hooks of a patch to the index; return moved hunks."""
        if not patch.diff.strip() and not patch.files():
            raise SeriesError(f'{patch.name} is empty: it has no diff and '
                              'names no own file')
        if self.at != parent:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.git.index + '.lock')
            self.git.run('read-tree', '--reset', parent)
        self.at = None
        if not patch.diff.strip():
            return []
        done = self.git.run('apply', '--cached', '--verbose', '-p1',
                            '--whitespace=nowarn', '-', data=patch.diff,
                            check=False)
        text = decode(done.stderr)
        if done.returncode:
            raise SeriesError(apply_problem(patch, text))
        self.check_paths(parent, patch, own)
        return [f'hunk {n} is at line {line}, off by {off}'
                for n, line, off in OFFSET.findall(text)]

    def check_paths(self, parent, patch, own):
        """A hook may only touch what exists upstream."""
        raw = self.git.fields('diff-index', '--cached', '-z', '--raw',
                              '--no-renames', '--no-abbrev', parent)
        for path, old, _ in parse_raw(raw):
            if path in own:
                raise SeriesError(
                    f'{patch.name} touches the own file {path} in its diff: '
                    f'own files are whole files, edit {own_files.shown(path)}')
            if old is None:
                raise SeriesError(
                    f'{patch.name} creates {path}, which upstream does not '
                    f'have: put it at {own_files.shown(path)} and add '
                    f'"Files: {path}" to the message')

    def commit(self, parent, patch, mine):
        if mine:
            self.tree.add_to_index(self.git, mine)
        tree = self.git.out('write-tree')
        done = commit(self.git, tree, parent, patch.message, patch.date)
        self.at = done
        return done


def fold_key(parent, patch, mine):
    parts = [parent, patch.message, patch.date, repr(sorted(mine.items()))]
    digest = hashlib.sha1(encode('\0'.join(parts)))
    digest.update(b'\0' + patch.diff)
    return digest.hexdigest()


def apply_problem(patch, text):
    """Turn what git apply says into one line with the hunk and its line."""
    match = FAILED.search(text)
    if match:
        path, line = match.groups()
        hunk, at = find_hunk(patch, path, line)
        return (f'{patch.name} does not apply: {path}, hunk "{hunk}" (line '
                f'{at} of the patch): adapt it, or scripts/series rehearse')
    match = CORRUPT.search(text)
    if match:
        at = int(match.group(1)) + patch.diff_line
        return f'{patch.name} is corrupt at line {at}: export it again'
    lines = [row for row in text.splitlines() if row.startswith('error: ')]
    return f"{patch.name} does not apply: {(lines or [text.strip()])[0][7:]}"


def find_hunk(patch, path, line):
    """The header of the failed hunk and its line number in the file."""
    inside = False
    for number, row in enumerate(patch.diff.split(b'\n'), patch.diff_line + 1):
        text = decode(row)
        if text.startswith('diff --git '):
            inside = text.rstrip('"').endswith(f'/{path}')
        elif inside and re.match(rf'@@ -{line}[, ]', text):
            return text, number
    return f'@@ -{line}', patch.diff_line + 1
