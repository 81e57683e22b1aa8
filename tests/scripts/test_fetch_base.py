# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/fetch-base on a tiny upstream: every way, every refusal."""
import hashlib
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'fetch-base'
MESON = "fds = ['edk2-x86_64-code.fd', 'edk2-arm-code.fd']\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file, with ranges; remembers the ranges asked for."""
    content = b''
    ranges = []

    def do_GET(self):
        asked = self.headers.get('Range')
        self.ranges.append(asked)
        start = int(asked[6:-1]) if asked else 0
        body = self.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

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

    def fetch(self, *args, sources=True, **env):
        (self.root / 'UPSTREAM').write_text(
            ''.join(f'{k}: {v}\n' for k, v in self.pin.items()))
        environ = {k: v for k, v in os.environ.items()
                   if k != 'QEMU_SOURCES' and not k.lower().endswith('_proxy')}
        if sources:
            environ['QEMU_SOURCES'] = str(self.sources)
        environ.update(env)
        return subprocess.run([self.root / 'scripts' / 'fetch-base', *args],
                              env=environ, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

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

    def test_broken_archive(self):
        path = self.sources / 'up.tar.xz'
        path.write_bytes(b'no archive')
        self.pin['tarball-sha256'] = hashlib.sha256(
            path.read_bytes()).hexdigest()
        done = self.fetch()
        self.assertEqual(done.returncode, 1)
        self.assertIn('cannot be unpacked', done.stdout)
        self.assert_no_tree()

    def serve(self, content):
        Handler.content, Handler.ranges = content, []
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

    def submodule(self, version='9.9.9'):
        sub = self.root / 'qemu'
        self.fill(sub, version)
        (sub / 'subprojects' / 'x.wrap').touch()
        git = ['git', '-C', sub, '-c', 'user.name=n', '-c', 'user.email=e']
        for args in (['init', '-q'], ['add', '-A'],
                     ['commit', '-qm', 'x']):
            subprocess.run(git + args, check=True)
        self.pin['commit'] = subprocess.run(
            git + ['rev-parse', 'HEAD'], check=True, text=True,
            stdout=subprocess.PIPE).stdout.strip()
        # a meson that can "download"
        tools = self.tmp / 'tools'
        tools.mkdir()
        meson = tools / 'meson'
        meson.write_text('#!/bin/sh\n'
                         'mkdir -p subprojects/keycodemapdb/.git\n')
        meson.chmod(0o755)
        return f"{tools}:{os.environ['PATH']}"

    def test_submodule_at_the_pin(self):
        path = self.submodule()
        done = self.fetch(PATH=path)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('submodule', done.stdout)
        self.assertTrue((self.tree() / 'subprojects/keycodemapdb').is_dir())
        self.assertFalse((self.tree() / 'subprojects/keycodemapdb/.git')
                         .exists())

    def test_submodule_elsewhere_is_refused(self):
        path = self.submodule()
        self.pin['commit'] = '1' * 40
        done = self.fetch(PATH=path)
        self.assertEqual(done.returncode, 1)
        self.assertIn('git submodule update', done.stdout)
        self.assert_no_tree()

    def test_submodule_whose_tag_differs_is_refused(self):
        path = self.submodule()
        git = ['git', '-C', self.root / 'qemu', '-c', 'user.name=n',
               '-c', 'user.email=e']
        subprocess.run(git + ['commit', '-q', '--allow-empty', '-m', 'y'],
                       check=True)
        subprocess.run(git + ['tag', 'v9.9.9'], check=True)
        subprocess.run(git + ['checkout', '-q', 'HEAD~1'], check=True)
        done = self.fetch(PATH=path)
        self.assertEqual(done.returncode, 1)
        self.assertIn('not the pinned commit', done.stdout)

    def test_unknown_option(self):
        self.assertEqual(self.fetch('--nonsense').returncode, 2)


if __name__ == '__main__':
    unittest.main()
