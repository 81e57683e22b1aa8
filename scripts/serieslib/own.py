# SPDX-License-Identifier: GPL-2.0-or-later
"""Own files: where they are here, where they land in the QEMU tree."""
import fnmatch
import os
import re

from .git import SeriesError, file_entry

# Folders here -> prefix in the QEMU tree.
TESTS = ('tests/qtest', 'tests/unit')
IGNORED = ('__pycache__', '*.pyc', '*~', '.*.sw?', '*.orig', '*.rej', '.#*',
           '#*#')


def own_path(root, path):
    """The place here of an own file, given its path in the QEMU tree."""
    if path.startswith(tuple(f'{top}/' for top in TESTS)):
        return os.path.join(root, path)
    return os.path.join(root, 'src', path)


def shown(path):
    """The same, relative to the project, for messages."""
    return own_path('', path)


def ignored(name):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)


def walk(top):
    """Yield the files below top, as paths relative to it."""
    for folder, folders, files in os.walk(top):
        links = [n for n in folders if os.path.islink(os.path.join(folder, n))]
        folders[:] = sorted(n for n in folders
                            if not ignored(n) and n not in links)
        for name in sorted(files + links):
            if not ignored(name):
                yield os.path.relpath(os.path.join(folder, name), top)


def check_name(here, path):
    if re.search(r'\s|[\x00-\x1f"\\]', path):
        raise SeriesError(f'{here}: a Files: trailer cannot name a file with '
                          'a blank, quote or backslash: rename it')
    if '.git' in path.lower().split('/'):
        raise SeriesError(f'{here}: git does not take this name: rename it')


def scan(root):
    """Return {path in the QEMU tree: (mode, blob id)} of all own files."""
    found = {}
    for top, prefix in [('src', '')] + [(t, f'{t}/') for t in TESTS]:
        for name in walk(os.path.join(root, top)):
            path, here = prefix + name, f'{top}/{name}'
            check_name(here, path)
            if top == 'src' and path.startswith(tuple(f'{t}/' for t in TESTS)):
                raise SeriesError(f'{here} belongs in {path}: move it there')
            found[path] = file_entry(os.path.join(root, top, name))
    return found


def owners(patches):
    """Return {path: patch}; refuse a file that two patches name."""
    found = {}
    for patch in patches:
        for path in patch.files():
            other = found.setdefault(path, patch)
            if other is not patch:
                raise SeriesError(
                    f'{path} is named by the Files: trailers of '
                    f'{other.name} and {patch.name}: it must have one owner')
        if len(set(patch.files())) != len(patch.files()):
            raise SeriesError(f'{patch.name} names a file twice in Files:')
    return found


def check_owners(owner, own):
    """Refuse names of files that do not exist; return the files unowned."""
    for path, patch in sorted(owner.items()):
        if path not in own:
            raise SeriesError(
                f'{patch.name} names {path} in Files:, but there is no '
                f'{shown(path)}: write the file or drop the name')
    return sorted(set(own) - set(owner))
