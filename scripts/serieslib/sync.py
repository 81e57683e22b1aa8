# SPDX-License-Identifier: GPL-2.0-or-later
"""Own files are edited here or in build/tree: carry changes both ways."""
import os

from .git import SeriesError, file_bytes, file_entry, say, write_file, \
    remove_file
from .own import own_path, scan, shown
from .tree import BRANCH


class Plan:
    """What to copy where; ``own`` is what both sides will have then."""

    def __init__(self):
        self.own = {}
        self.sources = {}
        self.to_tree = {}
        self.to_here = {}
        self.conflicts = []
        self.dropped = []
        self.restored = []


def plan(tree, extra=(), force=False):
    """Compare the own files here, in build/tree and as last synced.

    extra: paths that are new own files in the tree.  force: what is here
    wins over what is in the tree.
    """
    here, last = scan(tree.root), tree.state['own']
    folded = tree.state['folded']
    done = Plan()
    for path in sorted(set(here) | set(last) | set(extra)):
        mine, record = here.get(path), last.get(path)
        theirs = file_entry(tree.file(path))
        if mine == theirs:
            keep(done, path, mine, own_path(tree.root, path))
        elif theirs == record or force:
            done.to_tree[path] = mine
            keep(done, path, mine, own_path(tree.root, path))
        elif is_reset(theirs, folded.get(path)):
            done.restored.append(path)
            done.to_tree[path] = mine
            keep(done, path, mine, own_path(tree.root, path))
        elif mine == record and is_file(theirs):
            if theirs is None:
                done.dropped.append(path)
            done.to_here[path] = theirs
            keep(done, path, theirs, tree.file(path))
        else:
            done.conflicts.append(path)
    return done


def is_file(entry):
    return entry is None or entry[0] != '040000'


def is_reset(theirs, folded):
    """The tree went back to what the branch has (git checkout, reset, stash
    or clean) after a newer state was carried there: that is taken for a
    reset, not for an edit, so what is here counts."""
    return theirs == folded


def keep(done, path, entry, source):
    if entry:
        done.own[path] = entry
        done.sources[path] = source


def require_no_conflict(done):
    if not done.conflicts:
        return
    pairs = ', '.join(f'{shown(p)} and build/tree/{p}' for p in done.conflicts)
    raise SeriesError(f'changed on both sides: {pairs}: make them equal, or '
                      'undo one (nothing was touched)')


def require_no_drop(tree, done):
    """Do not delete here what only left the branch, unless exporting."""
    if not done.dropped or tree.tip() == tree.state['tip']:
        return
    head = tree.git.entries(BRANCH, done.dropped)
    gone = [path for path in done.dropped if head[path] is None]
    if gone:
        raise SeriesError(
            f"{', '.join(gone)} left branch series: scripts/series export to "
            'accept that, or git -C build/tree reset to the commit you want')


def carry_here(tree, done):
    """Copy what changed in the tree to src/ and tests/."""
    deleted = [p for p, e in done.to_here.items() if e is None
               and os.path.lexists(own_path(tree.root, p))]
    if deleted:
        tree.keep_files(deleted)
    for path, entry in done.to_here.items():
        target = own_path(tree.root, path)
        if entry is None:
            remove_file(target, os.path.join(tree.root, 'src'))
        else:
            write_file(target, entry, file_bytes(tree.file(path)),
                       os.path.join(tree.root, 'build', 'scratch'))
        say(f"{'deleted' if entry is None else 'copied to'} {shown(path)}")


def run(tree, done):
    """Carry out a plan without touching branch or index."""
    carry_here(tree, done)
    tree.add_blobs({p: s for p, s in done.sources.items()
                    if p in done.to_tree})
    tree.write(done.to_tree)
    for path in done.restored:
        say(f'restored build/tree/{path} from {shown(path)}')
    tree.save(own=done.own)
    return len(done.to_tree)
