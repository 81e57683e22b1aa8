# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/install with a build that is a few files."""
import os
import shutil
import stat
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'install'
QEMU = '#!/bin/sh\necho "QEMU emulator version 9.9"\necho more\n'
# meson install, into DESTDIR
MESON = """#!/bin/sh
echo "$@" > {out}/meson.calls
mkdir -p "$DESTDIR/usr/local/bin" "$DESTDIR/usr/local/share/qemu"
cp -p {out}/qemu-system-x86_64 "$DESTDIR/usr/local/bin"
ln -s qemu-system-x86_64 "$DESTDIR/usr/local/bin/link"
echo keymap > "$DESTDIR/usr/local/share/qemu/keymap"
"""


class Install(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.root = self.tmp / 'project'
        (self.root / 'scripts').mkdir(parents=True)
        for name in ('install', 'hotpath-top'):
            shutil.copy(SCRIPT.parent / name, self.root / 'scripts')
        qmp = self.root / 'build' / 'tree' / 'python' / 'qemu' / 'qmp'
        qmp.mkdir(parents=True)
        (qmp / '__init__.py').write_text('# QMP\n')
        self.out = self.root / 'build' / 'out'
        self.prefix = self.tmp / 'opt' / 'qemu'

    def write(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def make_build(self, qemu=QEMU):
        self.write(self.out / 'qemu-system-x86_64', qemu)
        self.write(self.out / 'pyvenv' / 'bin' / 'meson',
                   MESON.format(out=self.out))

    def install(self, *args, umask=0o022):
        before = os.umask(umask)
        try:
            return subprocess.run(
                [self.root / 'scripts' / 'install', *map(str, args)],
                text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT)
        finally:
            os.umask(before)

    def assert_one_line(self, done, *words):
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(len(done.stdout.splitlines()), 1, done.stdout)
        for word in words:
            self.assertIn(word, done.stdout)

    def mode(self, path):
        return stat.S_IMODE(path.stat().st_mode)

    def test_installs(self):
        self.make_build()
        done = self.install(self.prefix)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(done.stdout, 'QEMU emulator version 9.9\n'
                                      f'installed in {self.prefix}\n')
        self.assertTrue((self.prefix / 'share/qemu/keymap').is_file())
        self.assertEqual(os.readlink(self.prefix / 'bin/link'),
                         'qemu-system-x86_64')
        self.assertIn('--no-rebuild', (self.out / 'meson.calls').read_text())
        self.assertEqual(list((self.root / 'build').glob('install.??????')),
                         [])

    def test_monitor(self):
        """hotpath-top is there, with what it imports."""
        self.make_build()
        self.assertEqual(self.install(self.prefix).returncode, 0)
        self.assertTrue(os.access(self.prefix / 'bin/hotpath-top', os.X_OK))
        self.assertTrue((self.prefix / 'share/qemu-hotpath/python/qemu/qmp/'
                         '__init__.py').is_file())
        shutil.rmtree(self.root / 'build' / 'tree')
        self.assert_one_line(self.install(self.prefix), 'run make tree')

    def test_no_build(self):
        self.assert_one_line(self.install(self.prefix), 'run make build first')
        self.assertFalse(self.prefix.exists())

    def test_prefix_must_be_absolute(self):
        self.make_build()
        self.assert_one_line(self.install('opt'), 'PREFIX absolute')
        self.assert_one_line(self.install(), 'PREFIX absolute')

    def test_unwritable(self):
        self.make_build()
        file = self.tmp / 'file'
        file.touch()
        self.assert_one_line(self.install(file / 'x'), f'{file}/x is not '
                             'writable', 'DESTDIR')

    def test_destdir(self):
        self.make_build()
        stage = self.tmp / 'stage'
        done = self.install(self.prefix, stage)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertFalse(self.prefix.exists())
        self.assertTrue((stage / str(self.prefix)[1:] / 'bin' / 'link')
                        .is_symlink())

    def test_existing_directories_keep_their_mode(self):
        self.make_build()
        for path in self.prefix, self.prefix / 'bin':
            path.mkdir(parents=True)
            path.chmod(0o2775)
        done = self.install(self.prefix)
        self.assertEqual(done.returncode, 0, done.stdout)
        for path in self.prefix, self.prefix / 'bin':
            self.assertEqual(self.mode(path), 0o2775)

    def test_umask_does_not_hide_it(self):
        self.make_build()
        done = self.install(self.prefix, umask=0o077)
        self.assertEqual(done.returncode, 0, done.stdout)
        for path in (self.prefix.parent, self.prefix, self.prefix / 'bin',
                     self.prefix / 'bin' / 'qemu-system-x86_64'):
            self.assertEqual(self.mode(path), 0o755, path)
        self.assertEqual(self.mode(self.prefix / 'share/qemu/keymap'), 0o644)

    def test_again_while_it_runs(self):
        self.make_build()
        shutil.copy(shutil.which('bash'), self.out / 'qemu-system-x86_64')
        self.assertEqual(self.install(self.prefix).returncode, 0)
        program = self.prefix / 'bin' / 'qemu-system-x86_64'
        with subprocess.Popen([program, '-c', 'read -r line'],
                              stdin=subprocess.PIPE) as running:
            done = self.install(self.prefix)
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertIsNone(running.poll())

    def test_copying_fails(self):
        self.make_build()
        (self.prefix / 'share' / 'qemu' / 'keymap').mkdir(parents=True)
        self.assert_one_line(self.install(self.prefix), 'copying to',
                             'keymap')

    def test_incomplete_build(self):
        self.make_build()
        self.write(self.out / 'pyvenv/bin/meson', '#!/bin/sh\nexit 1\n')
        self.assert_one_line(self.install(self.prefix), 'meson install failed',
                             'run make build', 'install.log')

    def test_what_does_not_run(self):
        self.make_build('#!/bin/sh\necho "no libone.so"; exit 127\n')
        self.assert_one_line(self.install(self.prefix), 'does not run',
                             'no libone.so')


if __name__ == '__main__':
    unittest.main()
