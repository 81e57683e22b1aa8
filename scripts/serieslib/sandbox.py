# SPDX-License-Identifier: GPL-2.0-or-later
"""git am on any commit without a checkout.

A sandbox is a repository of its own that shares the objects of build/tree and
has an index but no files: git am writes the few files that it needs.
"""
import contextlib
import os
import re
import shutil
import tempfile

from .git import Git, decode, encode, first_line


class Sandbox:
    def __init__(self, tree, commit):
        folder = os.path.join(tree.root, 'build', 'scratch')
        os.makedirs(folder, exist_ok=True)
        self.path = tempfile.mkdtemp(prefix='am.', dir=folder)
        self.git = Git(os.path.join(self.path, '.git'), self.path,
                       objects=os.path.join(tree.git.gitdir, 'objects'))
        self.git.init()
        self.git.run('update-ref', 'HEAD', commit)
        self.git.run('read-tree', commit)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def check_out(self, paths):
        """Write these files, as far as they exist: a three-way merge takes
        files that it does not find, but not those that am wrote before."""
        self.git.run('checkout-index', '-f', '-q', '-u', '-z', '--stdin',
                     data=encode(''.join(f'{path}\0' for path in paths)),
                     check=False)

    def am(self, mails, three_way=False):
        """Apply {name: mail}; return None, or why it stopped."""
        folder = os.path.join(self.path, '.git', 'mails')
        os.makedirs(folder, exist_ok=True)
        paths = []
        for name, data in mails.items():
            paths.append(os.path.join(folder, name))
            with open(paths[-1], 'wb') as out:
                out.write(data)
        done = self.git.run('am', '--keep-cr', '--no-scissors', '-q',
                            '--committer-date-is-author-date',
                            '--whitespace=nowarn',
                            *(['-3'] if three_way else ['--no-3way']), *paths,
                            check=False)
        if done.returncode == 0:
            return None
        self.output = decode(done.stdout + done.stderr)
        return first_line(done)

    def conflicts(self):
        """The files in conflict after am stopped."""
        files = self.git.fields('diff', '-z', '--name-only',
                                '--diff-filter=U')
        for path in re.findall(r'^error: (?:patch failed: )?(.+?)(?::\d+|: '
                               r'(?:does not exist|already exists|patch does '
                               r'not apply).*)$', self.output, re.M):
            files.append(path)
        return sorted(set(files) - {''})

    def give_up(self):
        """Leave a patch out: back to the last commit, without files."""
        self.git.run('am', '--quit', check=False)
        self.git.run('read-tree', '--reset', 'HEAD')
        for name in os.listdir(self.path):
            path = os.path.join(self.path, name)
            if name == '.git':
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def head(self):
        return self.git.out('rev-parse', 'HEAD')
