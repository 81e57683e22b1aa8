# SPDX-License-Identifier: GPL-2.0-or-later
"""Run git so that nobody's configuration or environment changes the outcome."""
import hashlib
import os
import stat
import subprocess
import sys

NAME = 'qemu-hotpath'
MAIL = 'maintainers@qemu-hotpath.invalid'
IDENTITY = f'{NAME} <{MAIL}>'

# Given with every command; they win over what a repository says.
OVERRIDES = {
    'core.quotePath': 'false',
    'core.autocrlf': 'false',
    'core.attributesFile': '/dev/null',
    'core.excludesFile': '/dev/null',
    'core.hooksPath': '/dev/null',
    'core.fsmonitor': 'false',
    'commit.gpgSign': 'false',
    'diff.suppressBlankEmpty': 'false',
    'i18n.commitEncoding': 'utf-8',
    'i18n.logOutputEncoding': 'utf-8',
    'log.showSignature': 'false',
    'advice.detachedHead': 'false',
    'gc.auto': '0',
    'maintenance.auto': 'false',
    'submodule.recurse': 'false',
}

# Written into build/tree/.git/config for those who work there with git.
SETTINGS = dict(OVERRIDES, **{
    'user.name': NAME,
    'user.email': MAIL,
    'core.safecrlf': 'false',
    'core.fileMode': 'true',
    'core.symlinks': 'true',
    'core.untrackedCache': 'true',
    'core.looseCompression': '1',
    'am.keepcr': 'true',
    'apply.whitespace': 'nowarn',
    'rebase.autoSquash': 'true',
})

# Highest in precedence: no .gitattributes of the sources alters a file on its
# way into or out of the repository, nor the text of a diff.
ATTRIBUTES = ('* -text !eol -ident -filter !working-tree-encoding !diff '
              '!export-ignore !export-subst\n')


class SeriesError(Exception):
    """Something the user can put right; the text says how."""


def say(text):
    print(f'series: {text}', flush=True)


def warn(text):
    print(f'series: warning: {text}', file=sys.stderr, flush=True)


def decode(data):
    return data.decode('utf-8', 'surrogateescape')


def encode(text):
    return text.encode('utf-8', 'surrogateescape')


def without_git(environ):
    """git sets GIT_DIR and more for hooks; nothing of ours may see them."""
    return {k: v for k, v in environ.items() if not k.startswith('GIT_')}


class Git:
    """git on one repository, wherever the caller stands."""

    def __init__(self, gitdir, worktree, index=None, objects=None):
        self.gitdir = str(gitdir)
        self.worktree = str(worktree)
        self.index = index and str(index)
        self.objects = objects and str(objects)

    def with_index(self, index):
        return Git(self.gitdir, self.worktree, index, self.objects)

    def environment(self, extra=None):
        env = without_git(os.environ)
        env.update(GIT_DIR=self.gitdir, GIT_WORK_TREE=self.worktree,
                   GIT_CONFIG_GLOBAL='/dev/null', GIT_CONFIG_NOSYSTEM='1',
                   GIT_ATTR_NOSYSTEM='1', GIT_TERMINAL_PROMPT='0',
                   GIT_EDITOR='false', GIT_SEQUENCE_EDITOR='false',
                   GIT_LITERAL_PATHSPECS='1', GIT_NO_REPLACE_OBJECTS='1',
                   LC_ALL='C', TZ='UTC', GIT_AUTHOR_NAME=NAME,
                   GIT_AUTHOR_EMAIL=MAIL, GIT_COMMITTER_NAME=NAME,
                   GIT_COMMITTER_EMAIL=MAIL)
        if self.index:
            env['GIT_INDEX_FILE'] = self.index
        if self.objects:
            env['GIT_OBJECT_DIRECTORY'] = self.objects
        env.update(extra or {})
        return env

    def run(self, *args, data=None, check=True, env=None, timeout=None):
        """Run git; with check a failure is a SeriesError with its words."""
        command = ['git']
        for key, value in OVERRIDES.items():
            command += ['-c', f'{key}={value}']
        cwd = self.worktree if os.path.isdir(self.worktree) else self.gitdir
        feed = {'input': data}
        if data is None:
            feed = {'stdin': subprocess.DEVNULL}
        try:
            done = subprocess.run(command + [str(a) for a in args], cwd=cwd,
                                  env=self.environment(env), timeout=timeout,
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, **feed)
        except FileNotFoundError:
            raise SeriesError('git is not installed: run scripts/bootstrap')
        except subprocess.TimeoutExpired:
            raise SeriesError(f'git {args[0]} took longer than {timeout} s')
        if check and done.returncode:
            raise SeriesError(f'git {args[0]} failed: {first_line(done)}')
        return done

    def out(self, *args, **kwargs):
        return decode(self.run(*args, **kwargs).stdout).rstrip('\n')

    def fields(self, *args, **kwargs):
        """The NUL-terminated fields that a command prints with -z."""
        text = decode(self.run(*args, **kwargs).stdout)
        return text.split('\0')[:-1] if text else []

    def resolve(self, name):
        """The object that name means, or None."""
        done = self.run('rev-parse', '--verify', '-q', name, check=False)
        return decode(done.stdout).strip() or None

    def init(self):
        """Make the repository, untouched by templates and defaults."""
        os.makedirs(self.worktree, exist_ok=True)
        self.run('init', '-q', '--template=', '-b', 'series')
        self.configure()

    def configure(self):
        with open(os.path.join(self.gitdir, 'config'), 'w') as out:
            out.write('[core]\n\trepositoryformatversion = 0\n\tbare = false\n')
            for key, value in SETTINGS.items():
                section, name = key.split('.')
                out.write(f'[{section}]\n\t{name} = {value}\n')
        info = os.path.join(self.gitdir, 'info')
        os.makedirs(info, exist_ok=True)
        with open(os.path.join(info, 'attributes'), 'w') as out:
            out.write(ATTRIBUTES)

    def changes(self, old, new):
        """Yield (path, old entry, new entry) where the two trees differ."""
        raw = self.fields('diff-tree', '-r', '-z', '--raw', '--no-renames',
                          '--no-abbrev', old, new)
        return parse_raw(raw)

    def entries(self, tree, paths):
        """Return {path: entry or None} of these paths in a tree."""
        found = dict.fromkeys(paths)
        if not found:
            return found
        rows = self.fields('ls-tree', '-r', '-z', '--full-tree', tree)
        for row in rows:
            meta, path = row.split('\t', 1)
            if path in found:
                mode, _, sha = meta.split()
                found[path] = (mode, sha)
        return found

    def blobs(self, shas):
        """Return {sha: content}."""
        shas = sorted(set(shas))
        if not shas:
            return {}
        data = self.run('cat-file', '--batch',
                        data=encode('\n'.join(shas) + '\n')).stdout
        found, at = {}, 0
        for sha in shas:
            end = data.index(b'\n', at)
            head = data[at:end].split()
            if len(head) != 3:
                raise SeriesError(f'object {sha} is missing in {self.gitdir}')
            size = int(head[2])
            found[sha] = data[end + 1:end + 1 + size]
            at = end + 1 + size + 1
        return found


def first_line(done):
    lines = decode(done.stderr).strip().splitlines()
    lines = [line for line in lines if not line.startswith('hint:')]
    return lines[0] if lines else f'exit status {done.returncode}'


def parse_raw(fields):
    """Parse the fields of diff --raw -z without renames."""
    for meta, path in zip(fields[0::2], fields[1::2]):
        old_mode, new_mode, old_sha, new_sha, _ = meta.lstrip(':').split()
        old = None if set(old_mode) == {'0'} else (old_mode, old_sha)
        new = None if set(new_mode) == {'0'} else (new_mode, new_sha)
        yield path, old, new


def blob_id(data):
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def file_entry(path):
    """What git would record for a file: (mode, blob id); None if absent."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return '120000', blob_id(os.fsencode(os.readlink(path)))
        if stat.S_ISDIR(status.st_mode):
            return '040000', ''
        with open(path, 'rb') as stream:
            data = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return '100755' if status.st_mode & 0o100 else '100644', blob_id(data)


def file_bytes(path):
    """The content that git would record for a file."""
    if os.path.islink(path):
        return os.fsencode(os.readlink(path))
    with open(path, 'rb') as stream:
        return stream.read()


def write_file(path, entry, data, scratch):
    """Put content and mode at path in one step, by way of scratch."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.makedirs(scratch, exist_ok=True)
    part = os.path.join(scratch, f'part.{os.getpid()}')
    if os.path.lexists(part):
        os.unlink(part)
    if entry[0] == '120000':
        os.symlink(os.fsdecode(data), part)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        mode = 0o777 if entry[0] == '100755' else 0o666
        with os.fdopen(os.open(part, flags, mode), 'wb') as out:
            out.write(data)
    os.replace(part, path)


def remove_file(path, top):
    """Remove a file, and the directories that it leaves empty below top."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    folder = os.path.dirname(path)
    while folder != str(top) and not os.listdir(folder):
        os.rmdir(folder)
        folder = os.path.dirname(folder)
