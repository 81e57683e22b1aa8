# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/fetch-base on a tiny upstream: every way, every refusal."""
import fcntl
import hashlib
import http.server
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'fetch-base'
MESON = "fds = ['edk2-x86_64-code.fd', 'edk2-arm-code.fd']\n"


NAMES = ('keycodemapdb', 'berkeley-softfloat-3', 'berkeley-testfloat-3',
         'libvfio-user')


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file, with ranges; remembers the ranges asked for."""
    content = b''
    ranges = []
    breaks_at = None       # the connection ends there
    answer = None          # this instead of the file

    def do_GET(self):
        asked = self.headers.get('Range')
        self.ranges.append(asked)
        if self.answer:
            self.wfile.write(self.answer)
            return
        start = int(asked[6:-1]) if asked else 0
        if asked and start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(self.content[start:self.breaks_at])

    def log_message(self, *args):
        pass


class FetchBase(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.root = self.tmp / 'a project'
        (self.root / 'scripts').mkdir(parents=True)
        shutil.copy(SCRIPT, self.root / 'scripts')
        self.sources = self.tmp / 'sources'
        self.sources.mkdir()
        # a package manager that has nothing
        tool = self.root / 'scripts' / 'apt-private'
        tool.write_text('#!/bin/sh\necho "E: nothing here" >&2; exit 100\n')
        tool.chmod(0o755)
        self.pin = {
            'version': '9.9.9', 'tag': 'v9.9.9', 'commit': '0' * 40,
            'tarball': 'up.tar.xz', 'tarball-url': 'http://127.0.0.1:9/x',
            'tarball-sha256': '0' * 64, 'source': 'ds.orig.tar.xz',
            'source-package': 'qemu=9', 'source-suite': 'sid',
            'source-sha256': '0' * 64}

    def archive(self, name, version='9.9.9'):
        """Make an archive; return its hash."""
        tree = self.tmp / 'made' / 'qemu-9'
        shutil.rmtree(tree, ignore_errors=True)
        self.fill(tree, version)
        path = self.sources / name
        subprocess.run(['tar', '-cJf', path, '-C', tree.parent, tree.name],
                       check=True)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def fill(self, tree, version):
        (tree / 'pc-bios').mkdir(parents=True)
        (tree / 'subprojects').mkdir()
        (tree / 'VERSION').write_text(version + '\n')
        (tree / 'pc-bios' / 'meson.build').write_text(MESON)

    def write_pin(self):
        """Write UPSTREAM, but not under the eyes of a run that reads it."""
        text = ''.join(f'{k}: {v}\n' for k, v in self.pin.items())
        path = self.root / 'UPSTREAM'
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def fetch(self, *args, sources=True, **env):
        process = self.start(*args, sources=sources, **env)
        text = process.communicate(timeout=120)[0]
        return subprocess.CompletedProcess(args, process.returncode, text)

    def start(self, *args, sources=True, **env):
        self.write_pin()
        environ = {k: v for k, v in os.environ.items()
                   if k != 'QEMU_SOURCES' and not k.lower().endswith('_proxy')}
        if sources:
            environ['QEMU_SOURCES'] = str(self.sources)
        environ.update(env)
        return subprocess.Popen(
            [self.root / 'scripts' / 'fetch-base', *args], env=environ,
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)

    def fails(self, *args, naming=(), **kwargs):
        """It must end with 1 and its reason, which has these words."""
        done = self.fetch(*args, **kwargs)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertNotIn('Traceback', done.stdout)
        for word in [naming] if isinstance(naming, str) else naming:
            self.assertIn(word, done.stdout)
        return done.stdout

    def tree(self):
        return self.root / 'build' / 'base' / 'tree'

    def assert_no_tree(self):
        base = self.root / 'build' / 'base'
        self.assertEqual([p.name for p in base.glob('*')]
                         if base.exists() else [], [])

    def test_local_upstream_archive_comes_first(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        self.pin['source-sha256'] = self.archive('ds.orig.tar.xz', '1.1')
        done = self.fetch()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('local upstream archive', done.stdout)
        self.assertEqual((self.tree() / 'VERSION').read_text(), '9.9.9\n')

    def test_distribution_source_gets_empty_firmware(self):
        self.pin['source-sha256'] = self.archive('ds.orig.tar.xz')
        done = self.fetch()
        self.assertEqual(done.returncode, 0, done.stdout)
        images = sorted((self.tree() / 'pc-bios').glob('*.bz2'))
        self.assertEqual([p.name for p in images],
                         ['edk2-arm-code.fd.bz2', 'edk2-x86_64-code.fd.bz2'])
        import bz2
        self.assertEqual(bz2.decompress(images[0].read_bytes()), b'')

    def test_second_call_does_nothing(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        self.fetch()
        mark = self.tree() / 'mark'
        mark.touch()
        done = self.fetch()
        self.assertEqual((done.returncode, done.stdout), (0, ''))
        self.assertTrue(mark.exists())
        self.fetch('--force')
        self.assertFalse(mark.exists())

    def test_wrong_hash_is_refused(self):
        self.archive('up.tar.xz')
        self.pin['source-sha256'] = self.archive('ds.orig.tar.xz')
        done = self.fetch()
        self.assertEqual(done.returncode, 1)
        self.assertIn('up.tar.xz is refused', done.stdout)
        self.assertIn('0' * 64, done.stdout)
        self.assert_no_tree()

    def test_wrong_version_is_refused(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz', '1.2.3')
        done = self.fetch()
        self.assertEqual(done.returncode, 1)
        self.assertIn('1.2.3', done.stdout)
        self.assert_no_tree()

    def test_no_way_names_all(self):
        done = self.fetch(sources=False)
        self.assertEqual(done.returncode, 1)
        for word in ('submodule', 'up.tar.xz', 'ds.orig.tar.xz',
                     'QEMU_SOURCES', 'nothing here', 'refused'):
            self.assertIn(word, done.stdout)
        self.assertNotIn('Traceback', done.stdout)
        self.assert_no_tree()

    def offer(self, data):
        """Give these bytes as the verified upstream archive."""
        (self.sources / 'up.tar.xz').write_bytes(data)
        self.pin['tarball-sha256'] = hashlib.sha256(data).hexdigest()

    def tool(self, name, script):
        """Put a tool before all others; return the PATH."""
        tools = self.tmp / 'tools'
        tools.mkdir(exist_ok=True)
        (tools / name).write_text(f'#!/bin/sh\n{script}\n')
        (tools / name).chmod(0o755)
        return f"{tools}:{os.environ['PATH']}"

    def test_broken_archive(self):
        self.offer(b'no archive')
        self.fails(naming=['cannot be unpacked', 'the archive is broken'])
        self.assert_no_tree()
        self.archive('up.tar.xz')
        self.offer((self.sources / 'up.tar.xz').read_bytes()[:-40])
        self.fails(naming=['cannot be unpacked', 'the archive is broken'])

    def test_archive_on_a_full_disk(self):
        self.offer(b'whatever')
        path = self.tool('tar', 'echo "tar: x: Cannot write: No space left '
                         'on device" >&2; exit 2')
        self.fails(PATH=path, naming=['cannot be unpacked',
                                      'the disk is full'])

    def test_archive_without_xz(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        tools = self.tmp / 'few tools'
        tools.mkdir()
        (tools / 'python3').symlink_to(sys.executable)
        (tools / 'tar').symlink_to(shutil.which('tar'))
        self.fails(PATH=str(tools), naming=['xz is not installed',
                                            'scripts/bootstrap'])
        self.assert_no_tree()

    def test_new_pin_that_cannot_be_had_costs_nothing(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        self.fetch()
        stamp = (self.root / 'build/base/tree.origin').read_text()
        good = dict(self.pin)
        self.pin.update(version='10.0.0', tarball='later.tar.xz')
        self.fails(naming='no later.tar.xz')
        self.assertEqual((self.tree() / 'VERSION').read_text(), '9.9.9\n')
        self.assertEqual((self.root / 'build/base/tree.origin').read_text(),
                         stamp)
        self.pin = good
        done = self.fetch()
        self.assertEqual((done.returncode, done.stdout), (0, ''))

    def die_at(self, step):
        """Run --force in a child that dies in its step-th change of a tree;
        return whether it died."""
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                self.run_and_die(step)
            finally:
                os._exit(70)
        code = os.WEXITSTATUS(os.waitpid(child, 0)[1])
        self.assertIn(code, (0, 77), f'step {step}')
        return code == 77

    def run_and_die(self, step):
        name = str(self.root / 'scripts' / 'fetch-base')
        loader = importlib.machinery.SourceFileLoader('fetch_base', name)
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_loader('fetch_base', loader))
        sys.dont_write_bytecode = True
        loader.exec_module(module)
        left = [step]

        def mortal(function, in_the_midst=None):
            def call(path, *args, **kwargs):
                left[0] -= bool(os.path.lexists(path))
                if left[0] == 0:
                    if in_the_midst:
                        in_the_midst(path)
                    os._exit(77)
                return function(path, *args, **kwargs)
            return call

        shutil.rmtree = mortal(shutil.rmtree, lambda path: os.unlink(
            os.path.join(path, 'VERSION')))
        Path.rename = mortal(Path.rename)
        Path.unlink = mortal(Path.unlink)
        os.environ['QEMU_SOURCES'] = str(self.sources)
        os._exit(module.main(['--force']))

    def test_interrupted_replacement_is_noticed(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        self.fetch()
        step, died = 0, True
        while died:
            step += 1
            died = self.die_at(step)
            done = self.fetch()
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertTrue((self.tree() / 'VERSION').is_file(), step)
            self.assertEqual(
                sorted(p.name for p in self.tree().parent.iterdir()),
                ['tree', 'tree.origin'], step)
        self.assertGreater(step, 2)

    def test_link_to_sources_elsewhere(self):
        """The link is replaced; what it leads to is not ours."""
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        self.fetch()
        other = self.tmp / 'elsewhere'
        self.tree().rename(other)
        self.tree().symlink_to(other)
        self.assertEqual(self.fetch().stdout, '')
        self.assertEqual(self.fetch('--force').returncode, 0)
        self.assertFalse(self.tree().is_symlink())
        self.assertTrue((other / 'VERSION').is_file())
        self.assertFalse(os.path.lexists(self.tree().parent / 'tree.old'))

    def test_second_run_waits_for_the_first(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        (self.root / 'build').mkdir()
        with open(self.root / 'build' / '.fetch.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = self.start()
            self.assertIn('waiting', waiting.stdout.readline())
            fcntl.flock(lock, fcntl.LOCK_UN)
            waiting.communicate(timeout=60)
        self.assertEqual(waiting.returncode, 0)
        self.assertTrue((self.tree() / 'VERSION').is_file())

    def test_two_runs_at_once(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        runs = [self.start() for _ in range(3)]
        texts = [run.communicate(timeout=60)[0] for run in runs]
        self.assertEqual([run.returncode for run in runs], [0, 0, 0], texts)
        self.assertEqual(''.join(texts).count('unpacking'), 1)

    def test_build_cannot_be_written(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        (self.root / 'build').mkdir()
        if os.geteuid() == 0:
            (self.root / 'build' / 'base').write_text('no folder')
        else:
            (self.root / 'build').chmod(0o555)
        text = self.fails(naming='build')
        self.assertEqual(text.count('\n'), 1)

    def serve(self, content):
        Handler.content, Handler.ranges = content, []
        Handler.breaks_at = Handler.answer = None
        server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.pin['tarball-url'] = (
            f'http://127.0.0.1:{server.server_address[1]}/up.tar.xz')

    def test_download_goes_on_where_it_stopped(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        content = (self.sources / 'up.tar.xz').read_bytes()
        self.serve(content)
        downloads = self.root / 'build' / 'downloads'
        downloads.mkdir(parents=True)
        (downloads / 'up.tar.xz.part').write_bytes(content[:100])
        done = self.fetch(sources=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(Handler.ranges, ['bytes=100-'])
        self.assertEqual((downloads / 'up.tar.xz').read_bytes(), content)
        self.assertFalse((downloads / 'up.tar.xz.part').exists())

    def test_download_with_wrong_hash(self):
        self.archive('up.tar.xz')
        self.serve((self.sources / 'up.tar.xz').read_bytes())
        done = self.fetch(sources=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn('the download up.tar.xz is refused', done.stdout)
        self.assertEqual(
            list((self.root / 'build' / 'downloads').iterdir()), [])
        self.assert_no_tree()

    def part(self):
        folder = self.root / 'build' / 'downloads'
        folder.mkdir(parents=True, exist_ok=True)
        return folder / 'up.tar.xz.part'

    def test_connection_that_breaks(self):
        """No wrong hash: the other way is tried, the next run goes on."""
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        content = (self.sources / 'up.tar.xz').read_bytes()
        self.serve(content)
        Handler.breaks_at = 100
        text = self.fails(sources=False, naming=[
            f'the connection ended at 100 of {len(content)} bytes',
            'nothing here'])
        self.assertNotIn('is refused', text)
        self.assertEqual(self.part().read_bytes(), content[:100])
        Handler.breaks_at = 130
        self.fails(sources=False,
                   naming=f'ended at 130 of {len(content)} bytes')
        Handler.breaks_at = None
        done = self.fetch(sources=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(Handler.ranges, [None, 'bytes=100-', 'bytes=130-'])
        self.assertTrue((self.tree() / 'VERSION').is_file())

    def test_answer_that_is_no_http(self):
        self.serve(b'')
        for answer in (b'nonsense\r\n\r\n', b'HTTP/1.0 200 OK\r\n'
                       b'Transfer-Encoding: chunked\r\n\r\n9\r\nab'):
            Handler.answer = answer
            self.fails(sources=False, naming=['upstream download: http',
                                              'nothing here'])

    def test_part_that_is_complete_already(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        content = (self.sources / 'up.tar.xz').read_bytes()
        self.serve(content)
        self.part().write_bytes(content)
        done = self.fetch(sources=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(Handler.ranges, [f'bytes={len(content)}-'])

    def test_part_of_another_file(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        content = (self.sources / 'up.tar.xz').read_bytes()
        self.serve(content)
        self.part().write_bytes(content + b'more')
        self.fails(sources=False, naming='416')
        self.assertFalse(self.part().exists())
        self.assertEqual(self.fetch(sources=False).returncode, 0)

    def git(self, folder, *args):
        env = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
        return subprocess.run(
            ['git', '-C', folder, '-c', 'user.name=n', '-c', 'user.email=e',
             *args], check=True, text=True, stdout=subprocess.PIPE,
            env=env).stdout.strip()

    def commit(self, folder):
        """Make a repository of a folder; return the commit."""
        self.git(folder, 'init', '-q')
        self.git(folder, 'add', '-A')
        self.git(folder, 'commit', '-q', '-m', 'x')
        return self.git(folder, 'rev-parse', 'HEAD')

    def wrap(self, sub, name, *lines):
        """Make the repository of a sub-project and the file that names it."""
        there = self.tmp / 'upstream of' / name
        there.mkdir(parents=True)
        (there / 'README').write_text(name)
        first = self.commit(there)
        (there / 'README').write_text('later')
        self.commit(there)
        (sub / 'subprojects' / f'{name}.wrap').write_text('\n'.join(
            ['[wrap-git]', f'url = {there}', f'revision = {first}',
             'depth = 1', *lines, '']))

    def submodule(self, version='9.9.9', *lines):
        """Make qemu/; return a PATH where meson is of no use."""
        sub = self.root / 'qemu'
        self.fill(sub, version)
        for name in NAMES[:-1]:
            self.wrap(sub, name)
        self.wrap(sub, NAMES[-1], *(lines or ['patch_directory = extra']))
        extra = sub / 'subprojects' / 'packagefiles' / 'extra' / 'lib'
        extra.mkdir(parents=True)
        (extra / 'meson.build').write_text('added\n')
        self.pin['commit'] = self.commit(sub)
        return self.tool('meson', 'echo "too old" >&2; exit 1')

    def test_submodule_at_the_pin(self):
        path = self.submodule()
        done = self.fetch(PATH=path)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('submodule', done.stdout)
        for name in NAMES:
            folder = self.tree() / 'subprojects' / name
            self.assertEqual((folder / 'README').read_text(), name)
            self.assertFalse((folder / '.git').exists())
        self.assertEqual((folder / 'lib/meson.build').read_text(), 'added\n')

    def test_submodule_without_its_subprojects(self):
        path = self.submodule()
        shutil.rmtree(self.tmp / 'upstream of' / 'keycodemapdb')
        self.fails(PATH=path, naming=['sub-project keycodemapdb',
                                      'upstream of', 'nothing here'])
        self.assert_no_tree()

    def test_submodule_whose_subproject_asks_for_more(self):
        path = self.submodule('9.9.9', 'diff_files = x.patch')
        self.fails(PATH=path, naming=['libvfio-user.wrap', 'asks for more'])
        self.assert_no_tree()

    def test_submodule_without_a_commit(self):
        self.pin['tarball-sha256'] = self.archive('up.tar.xz')
        (self.root / 'qemu').mkdir()
        self.git(self.root / 'qemu', 'init', '-q')
        self.fails(sources=False, naming='qemu/ cannot be read by git: fatal')
        done = self.fetch()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('local upstream archive', done.stdout)

    def test_submodule_of_another_owner(self):
        if os.geteuid() != 0:
            self.skipTest('only root can give files away')
        path = self.submodule()
        for name in ('qemu', 'qemu/.git'):
            os.chown(self.root / name, 65534, 65534)
        self.fails(PATH=path, HOME=str(self.tmp),
                   naming=['qemu/ cannot be read by git', 'ownership'])

    def test_submodule_with_an_object_missing(self):
        path = self.submodule()
        blob = self.git(self.root / 'qemu', 'rev-parse',
                        'HEAD:pc-bios/meson.build')
        (self.root / 'qemu/.git/objects' / blob[:2] / blob[2:]).unlink()
        self.fails(PATH=path, naming=['could not be copied', blob])
        self.assert_no_tree()

    def test_from_a_hook_of_another_repository(self):
        """git sets these for hooks; they must not reach our git."""
        path = self.submodule()
        other = self.tmp / 'other'
        other.mkdir()
        (other / 'file').touch()
        self.commit(other)
        done = self.fetch(PATH=path, GIT_DIR=str(other / '.git'),
                          GIT_WORK_TREE=str(other),
                          GIT_INDEX_FILE=str(other / '.git' / 'index'))
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertTrue((self.tree() / 'subprojects/keycodemapdb').is_dir())
        self.assertEqual(self.git(other, 'status', '--porcelain'), '')

    def test_submodule_elsewhere_is_refused(self):
        path = self.submodule()
        self.pin['commit'] = '1' * 40
        done = self.fetch(PATH=path)
        self.assertEqual(done.returncode, 1)
        self.assertIn('git submodule update', done.stdout)
        self.assert_no_tree()

    def test_submodule_whose_tag_differs_is_refused(self):
        path = self.submodule()
        sub = self.root / 'qemu'
        self.git(sub, 'commit', '-q', '--allow-empty', '-m', 'y')
        self.git(sub, 'tag', 'v9.9.9')
        self.git(sub, 'checkout', '-q', 'HEAD~1')
        done = self.fetch(PATH=path)
        self.assertEqual(done.returncode, 1)
        self.assertIn('not the pinned commit', done.stdout)

    def test_unknown_option(self):
        self.assertEqual(self.fetch('--nonsense').returncode, 2)


if __name__ == '__main__':
    unittest.main()
