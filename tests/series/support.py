# SPDX-License-Identifier: GPL-2.0-or-later
"""A small upstream, a series on it, and a developer who edits both.

The upstream holds what git likes to alter: CRLF, no newline at the end,
trailing blanks, ident keywords, attributes, ignored files, a binary, a
symbolic link, an executable, names with blanks and other letters.
"""
import atexit
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
SCRIPT = os.path.join(REPOSITORY, 'scripts', 'series')
EMPTY_BZ2 = b'BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00'
BASE = 'refs/hotpath/base'

SPDX = '/* SPDX-License-Identifier: GPL-2.0-or-later */\n'
MEMORY = ''.join(f'int memory_step_{n}(int x)\n{{\n    return x + {n};\n}}\n\n'
                 for n in range(30))
CHECKPATCH = '''\
# Reports added lines with the word BADSTYLE, as checkpatch --terse does.
my ($file) = grep { !/^--/ } @ARGV;
open(my $in, '<', $file) or die;
my $bad = 0;
while (<$in>) {
    if (/^\\+.*BADSTYLE/) {
        print "$file:$.: WARNING: a bad style here\\n";
        $bad = 1;
    }
}
exit($bad);
'''
UPSTREAM = {
    'VERSION': b'10.2.2\n',
    'COPYING': b'licence\n',
    'MAINTAINERS': b'Maintainers\n-----------\n',
    'Makefile': b'all:\n\ttrue\n',
    'README.rst': b'readme\n',
    'docs/index.rst': b'docs\n',
    'docs/n\u00e4me mit.txt': b'one\ntwo\nthree\nfour\n',
    'linux-user/main.c': b'int main;\n',
    'system/memory.c': MEMORY.encode(),
    'system/meson.build': b"files(\n  'memory.c',\n  'vl.c',\n)\n",
    'system/vl.c': b'int vl;\nint last;\n',
    'hw/crlf.c': b'int a;\r\nint b;\r\nint c;\r\n',
    'hw/noeol.c': b'int a;\nint b;',
    'hw/blanks.c': b'int a; \t \n\t int b;  \n\n  \nint c;\n',
    'hw/blob.bin': bytes(range(256)) * 4,
    'hw/id.ident': b'$Id$ stays\n',
    'hw/ignored.o': b'not ignored in the base\n',
    'scripts/run.sh': b'#!/bin/sh\n',
    'scripts/checkpatch.pl': CHECKPATCH.encode(),
    '.gitignore': b'*.o\n/hw/hidden.h\n',
    '.gitattributes': b'*.c text eol=crlf\n*.ident ident\n'
                      b'*.c diff=c\n* export-ignore\n',
    'pc-bios/edk2-x86_64-code.fd.bz2': EMPTY_BZ2,
    'pc-bios/meson.build': b'blobs\n',
}


def load_script():
    """Import scripts/series, which has no suffix."""
    loader = importlib.machinery.SourceFileLoader('series_script', SCRIPT)
    spec = importlib.util.spec_from_loader('series_script', loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


sys.dont_write_bytecode = True
series_script = load_script()


def put(path, data, mode=None):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as out:
        out.write(data if isinstance(data, bytes) else data.encode())
    if mode:
        os.chmod(path, mode)


def get(path):
    with open(path, 'rb') as stream:
        return stream.read()


def make_upstream(folder):
    for name, data in UPSTREAM.items():
        put(os.path.join(folder, name), data)
    os.chmod(os.path.join(folder, 'scripts/run.sh'), 0o755)
    os.symlink('vl.c', os.path.join(folder, 'system/link.c'))


def message(subject, *files, body='Why it is needed.'):
    lines = [subject, '', body, '',
             'Upstream-Status: Inappropriate [downstream series]']
    lines += [f'Files: {name}' for name in files]
    return '\n'.join(lines) + '\n'


def run_series(root, *args):
    """Run the tool in this process; return (status, output)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = series_script.main(['--root', root, *args])
        except SystemExit as err:
            status = err.code
    return status, out.getvalue()


def developer_env(home):
    env = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
    env.update(HOME=home, GIT_CONFIG_NOSYSTEM='1', GIT_EDITOR='true',
               GIT_SEQUENCE_EDITOR='true', LC_ALL='C', TZ='UTC',
               XDG_CONFIG_HOME=os.path.join(home, '.config'),
               GIT_AUTHOR_DATE='1700000000 +0100')
    return env


class Template:
    """The project that tests copy; made once."""

    path = None

    @classmethod
    def get(cls):
        if not cls.path:
            cls.path = tempfile.mkdtemp(prefix='series test ')
            atexit.register(shutil.rmtree, cls.path, True)
            cls.make(os.path.join(cls.path, 'project'))
        return os.path.join(cls.path, 'project')

    @staticmethod
    def make(root):
        make_upstream(os.path.join(root, 'build/base/tree'))
        put(os.path.join(root, 'build/base/tree.origin'), '10.2.2 x\n')
        project = Project()
        project.root, project.home = root, os.path.dirname(root)
        project.ok('apply')
        filler = ''.join(f'int line_{n};\n' for n in range(200))
        project.put('src/system/counter.c', SPDX + filler)
        project.put('src/include/system/counter.h', SPDX + 'int counter;\n')
        project.put('tests/unit/test-counter.c', SPDX + 'int test;\n')
        project.ok('sync')
        project.replace('build/tree/system/meson.build', "  'vl.c',\n",
                        "  'counter.c',\n  'vl.c',\n")
        project.commit(message('system: add a counter', 'system/counter.c',
                               'include/system/counter.h',
                               'tests/unit/test-counter.c'))
        project.replace('build/tree/system/memory.c', 'x + 7;', 'x + 700;')
        project.commit(message('memory: use the counter'))
        project.ok('export')
        project.git('repack', '-a', '-d', '-q')
        project.git('prune-packed', '-q')


class Project(unittest.TestCase):
    """A test case with a project of its own in self.root."""

    def setUp(self):
        self.home = tempfile.mkdtemp(prefix='series test ')
        self.addCleanup(shutil.rmtree, self.home, True)
        self.root = os.path.join(self.home, 'my project')
        shutil.copytree(Template.get(), self.root, symlinks=True)
        # The copies are other inodes to git; let it look once.
        self.git('status', '--short')

    # Files

    def path(self, name):
        return os.path.join(self.root, name)

    def put(self, name, data, mode=None):
        put(self.path(name), data, mode)

    def get(self, name):
        return get(self.path(name))

    def replace(self, name, old, new):
        data = self.get(name)
        old, new = [t if isinstance(t, bytes) else t.encode()
                    for t in (old, new)]
        if old not in data:
            raise AssertionError(f'{old} is not in {name}')
        self.put(name, data.replace(old, new, 1))

    def exists(self, name):
        return os.path.lexists(self.path(name))

    def patches(self):
        folder = self.path('patches')
        return {n: get(os.path.join(folder, n))
                for n in sorted(os.listdir(folder)) if n.endswith('.patch')}

    def snapshot(self, *tops):
        """All files below these folders, with content and times."""
        found = {}
        for top in tops:
            for folder, folders, files in os.walk(self.path(top)):
                if '.git' in folders:
                    folders.remove('.git')
                for name in files:
                    path = os.path.join(folder, name)
                    data = os.readlink(path) if os.path.islink(path) \
                        else get(path)
                    found[os.path.relpath(path, self.root)] = (
                        data, os.lstat(path).st_mtime_ns)
        return found

    # The developer

    def git(self, *args, check=True, **env):
        done = subprocess.run(
            ['git', '-C', os.path.join(self.root, 'build/tree'), *args],
            env={**developer_env(self.home), **env}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = done.stdout.decode('utf-8', 'surrogateescape')
        if check and done.returncode:
            raise AssertionError(f'git {args}: {text}')
        return text.rstrip('\n')

    def commit(self, text, *options):
        self.git('add', '-A')
        self.git('commit', '-q', '--allow-empty', '-m', text, *options)

    def amend(self, text=None):
        self.git('add', '-A')
        self.git('commit', '-q', '--amend',
                 *(['-m', text] if text else ['--no-edit']))

    def tip(self):
        return self.git('rev-parse', 'series')

    # The tool

    def ok(self, *args):
        status, text = run_series(self.root, *args)
        if status != 0:
            raise AssertionError(f'{args} ends with {status}: {text}')
        return text

    def fails(self, *args, naming=()):
        """The command must end with 1 and one line that has these words."""
        status, text = run_series(self.root, *args)
        self.assertEqual(status, 1, text)
        self.assertNotIn('Traceback', text)
        for word in [naming] if isinstance(naming, str) else naming:
            self.assertIn(word, text)
        return text

    def refuses(self, *args, naming=()):
        """As fails, and nothing that the user made is touched."""
        before = self.snapshot('src', 'tests', 'patches', 'build/tree')
        tip = self.tip()
        text = self.fails(*args, naming=naming)
        self.assertEqual(
            before, self.snapshot('src', 'tests', 'patches', 'build/tree'))
        self.assertEqual(tip, self.tip())
        return text

    def run_check(self, status=0):
        got, text = run_series(self.root, 'check')
        self.assertEqual(got, status, text)
        return text

    def assertApplies(self):
        """The tree is what patches/ and src/ say, and all is clean."""
        self.ok('apply')
        self.assertEqual(self.git('status', '--porcelain'), '')
        before = self.patches()
        self.ok('export')
        self.assertEqual(self.patches(), before)
