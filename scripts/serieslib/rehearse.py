# SPDX-License-Identifier: GPL-2.0-or-later
"""Try the series on another base, or move it there."""
import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile

from . import commands
from .git import SeriesError, decode, encode, say, without_git
from .sandbox import Sandbox
from .tree import BASE_DATE, BASE_REF, BRANCH, commit, import_tree

WIP = 'refs/heads/rebase-wip'
WIP_BASE = 'refs/hotpath/rebase-base'
FETCH_SECONDS = 600


def target(tree, where):
    """Return the commit of a directory, an archive, a commit or a tag."""
    if os.path.isdir(where):
        say(f'importing {where} (about 30 seconds)')
        return import_tree(tree.git, where)
    if os.path.isfile(where):
        return import_archive(tree, where)
    found = tree.git.resolve(f'{where}^{{commit}}')
    return found or fetch(tree, where)


def import_archive(tree, path):
    if not tarfile.is_tarfile(path):
        raise SeriesError(f'{path} is no tar archive')
    folder = os.path.join(tree.root, 'build', 'scratch')
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        say(f'unpacking and importing {path} (about a minute)')
        if subprocess.run(['tar', '-xf', path, '-C', new,
                           '--strip-components=1', '--no-same-owner'],
                          stdin=subprocess.DEVNULL).returncode:
            raise SeriesError(f'{path} cannot be unpacked')
        return import_tree(tree.git, new)


def fetch(tree, name):
    """Fetch a tag or branch from qemu/ or from the pinned repository."""
    if not re.match(r'^[A-Za-z0-9][A-Za-z0-9._/-]*$', name):
        raise SeriesError(f'{name} is neither a directory nor an archive, nor '
                          'can it be a tag')
    tried = []
    for source in sources(tree):
        done = tree.git.run('fetch', '-q', '--depth=1', '--no-tags', source,
                            name, check=False, timeout=FETCH_SECONDS)
        if done.returncode == 0:
            fetched = tree.git.resolve('FETCH_HEAD^{commit}')
            return plain_base(tree, fetched)
        lines = decode(done.stderr).strip().splitlines() or ['no answer']
        tried.append(f'{source}: {lines[0]}')
    raise SeriesError(
        f'{name} is no directory, archive or commit, and cannot be fetched '
        f"({'; '.join(tried) or 'no qemu/ and no repository in UPSTREAM'}): "
        'unpack the sources and name the directory')


def sources(tree):
    sub = os.path.join(tree.root, 'qemu')
    if os.path.exists(os.path.join(sub, '.git')):
        yield sub
    with contextlib.suppress(FileNotFoundError), \
            open(os.path.join(tree.root, 'UPSTREAM')) as stream:
        yield from re.findall(r'^repository:\s*(\S+)$', stream.read(), re.M)


def plain_base(tree, fetched):
    """A commit without history of the same content, as import_tree makes."""
    version = tree.git.out('show', f'{fetched}:VERSION').strip()
    return commit(tree.git, tree.git.out('rev-parse', f'{fetched}^{{tree}}'),
                  None, f'base: QEMU {version}\n', BASE_DATE)


def try_series(series, sandbox):
    """Apply patch by patch; return a row for each."""
    rows = []
    mails = commands.folded_mails(series, complete=True)
    for item, (name, data) in zip(series.folded, mails.items()):
        before = sandbox.head()
        sandbox.check_out(path for path, _, _ in sandbox.git.changes(
            item.parent, item.commit))
        why = sandbox.am({name: data}, three_way=True)
        row = {'patch': name, 'result': 'ok', 'files': []}
        if why:
            row.update(result='conflict', files=sandbox.conflicts(), why=why)
            sandbox.give_up()
        elif sandbox.head() == before:
            row.update(result='empty')
        rows.append(row)
    return rows


def print_rows(rows):
    for row in rows:
        files = f"  {' '.join(row['files'])}" if row['files'] else ''
        print(f"{row['result']:<9} {row['patch']}{files}")
        if row['result'] == 'conflict' and not row['files']:
            print(f"          {row['why']}")
    good = sum(row['result'] == 'ok' for row in rows)
    print(f'{good} of {len(rows)} patches apply')
    return good == len(rows)


def rehearse(tree, where, build=None):
    """Try; never touch branch series.  Return whether all applied."""
    tree.open()
    series = commands.Series(tree).fold_here()
    onto = target(tree, where)
    with Sandbox(tree, onto) as sandbox:
        rows = try_series(series, sandbox)
        head = sandbox.head()
    good = print_rows(rows)
    report = {'to': where, 'onto': onto, 'base': series.base, 'result': head,
              'patches': rows}
    if build:
        report['build'] = run_build(tree, head, where, build)
        good = good and report['build']['status'] == 0
    path = os.path.join(tree.root, 'build', f'rehearse-{short(where)}.json')
    with open(path, 'w') as out:
        json.dump(report, out, indent=1)
        out.write('\n')
    say(f'the table is in {os.path.relpath(path, tree.root)}')
    return good


def short(where):
    name = os.path.basename(os.path.abspath(where))
    return re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'base'


def run_build(tree, head, where, command):
    """Check out what applied and run a command in it."""
    folder = os.path.join(tree.root, 'build', 'rehearse', short(where), 'tree')
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    index = os.path.join(tree.private, 'index.rehearse')
    git = tree.git.with_index(index)
    git.run('read-tree', '--reset', head)
    git.run('checkout-index', '-a', '-q', f'--prefix={folder}/')
    os.unlink(index)
    say(f'running in {os.path.relpath(folder, tree.root)}: {command}')
    status = subprocess.run(['sh', '-c', command], cwd=folder,
                            env=without_git(os.environ),
                            stdin=subprocess.DEVNULL).returncode
    print(f"build     {'ok' if status == 0 else f'failed, status {status}'}")
    return {'command': command, 'status': status}


def rebase(tree, where):
    """Move branch series to another base, if every patch applies."""
    commands.apply(tree)
    series = commands.Series(tree).fold_here()
    onto = target(tree, where)
    with Sandbox(tree, onto) as sandbox:
        rows = try_series(series, sandbox)
        head = sandbox.head()
    if not print_rows(rows):
        leave_wip(tree, onto, head, rows, series)
        return False
    adopt(tree, onto, head)
    return True


def leave_wip(tree, onto, head, rows, series):
    tree.git.run('update-ref', WIP, head)
    tree.git.run('update-ref', WIP_BASE, onto)
    mails = commands.folded_mails(series, complete=True)
    commands.write_folder(os.path.join(tree.root, 'build', 'series'), mails,
                          os.path.join(tree.root, 'build', 'scratch'))
    missing = [row['patch'] for row in rows if row['result'] != 'ok']
    say('branch series is unchanged; branch rebase-wip of build/tree has what '
        f"applied, without {', '.join(missing)}")
    say('go on: git -C build/tree switch rebase-wip; git am -3 --keep-cr '
        '../series/NNNN-...; put it in order (rebase -i); scripts/series '
        'rebase --continue')


def go_on(tree):
    """Take branch rebase-wip, finished by hand, as branch series."""
    tree.load()
    onto, head = tree.git.resolve(WIP_BASE), tree.git.resolve(WIP)
    if not onto or not head:
        raise SeriesError('there is no branch rebase-wip to go on with: '
                          'scripts/series rebase TO')
    busy = tree.busy()
    if busy and 'rebase-wip' not in busy:
        raise SeriesError(f'{busy}: finish that first')
    changed, _ = tree.status()
    if changed:
        raise SeriesError('build/tree has changes that are not committed: '
                          f"{', '.join(changed)}: commit them first")
    if not tree.is_ancestor(onto, head):
        raise SeriesError('branch rebase-wip does not stand on the new base '
                          f'{onto[:12]}: git switch rebase-wip; git rebase '
                          '--onto refs/hotpath/rebase-base ...')
    adopt(tree, onto, head)


def adopt(tree, onto, head):
    """Make head, on the base onto, branch series; not yet exported."""
    tree.require_free('HEAD', head, tree.state['own'])
    tree.keep(tree.tip(), 'the old branch series')
    if tree.git.resolve('HEAD') != head:
        tree.git.run('read-tree', '-m', '-u', 'HEAD', head)
    refs = [f'update {BRANCH} {head}', f'update {BASE_REF} {onto}']
    refs += [f'delete {ref}' for ref in (WIP, WIP_BASE)
             if tree.git.resolve(ref)]
    tree.git.run('update-ref', '--stdin', data=encode('\n'.join(refs) + '\n'))
    tree.git.run('symbolic-ref', 'HEAD', BRANCH)
    tree.save(base=onto)
    say('branch series stands on the new base: build and test it, then '
        'scripts/series export, pin the new base in UPSTREAM, and '
        'scripts/fetch-base')

