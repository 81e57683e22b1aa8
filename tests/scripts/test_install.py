# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/install with a build that is a few files."""
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / 'scripts' / 'install'
UNITS = 'lib/systemd/system'
# the sources of what QEMU's build installs, and of what the script does
STORAGE = PROJECT / 'src/contrib/storage-growth'
HELPER = PROJECT / 'src/contrib/systemd'
PAGES = PROJECT / 'docs/man'
COMMANDS = ('hotpath-top.1', 'qemu-irq-affinity-helper.8',
            'qemu-storage-agent.1', 'qemu-storage-controller.1',
            'qemu-storage-ctl.1', 'zpipe.1')
QEMU = '#!/bin/sh\necho "QEMU emulator version 9.9"\necho more\n'
# meson install, into DESTDIR
MESON = """#!/bin/sh
echo "$@" > {out}/meson.calls
mkdir -p "$DESTDIR/usr/local/bin" "$DESTDIR/usr/local/share/qemu"
cp -p {out}/qemu-system-x86_64 "$DESTDIR/usr/local/bin"
ln -s qemu-system-x86_64 "$DESTDIR/usr/local/bin/link"
echo keymap > "$DESTDIR/usr/local/share/qemu/keymap"
mkdir -p "$DESTDIR/usr/local/lib/systemd/system"
cp {storage}/*.service "$DESTDIR/usr/local/lib/systemd/system"
for name in storage-agent storage-controller irq-affinity-helper; do
    cp {out}/qemu-system-x86_64 "$DESTDIR/usr/local/bin/qemu-$name"
done
"""


def names(folder, *suffixes):
    return {p.name for p in folder.iterdir() if p.suffix in suffixes}


class Install(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.root = self.tmp / 'project'
        (self.root / 'scripts').mkdir(parents=True)
        for name in ('install', 'hotpath-top'):
            shutil.copy(SCRIPT.parent / name, self.root / 'scripts')
        for folder in HELPER, PAGES:
            shutil.copytree(folder, self.root / folder.relative_to(PROJECT))
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
                   MESON.format(out=self.out, storage=STORAGE))

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

    def test_units(self):
        """They name what is in PREFIX, not in DESTDIR."""
        self.make_build()
        stage = self.tmp / 'stage'
        done = self.install(self.prefix, stage)
        self.assertEqual(done.returncode, 0, done.stdout)
        base = stage / str(self.prefix)[1:]
        there = names(base / UNITS, '.service', '.socket')
        self.assertEqual(there, names(STORAGE, '.service') |
                         names(HELPER, '.service', '.socket'))
        self.assertEqual(len(there), 4)
        for unit in (base / UNITS).glob('*.service'):
            with self.subTest(unit.name):
                self.assertEqual(self.mode(unit), 0o644)
                lines = unit.read_text().splitlines()
                starts = [x for x in lines if x.startswith('ExecStart=')]
                program = self.prefix / 'bin' / unit.stem
                self.assertEqual([x.split(' ')[0] for x in starts],
                                 [f'ExecStart="{program}"'])
                self.assertTrue((base / 'bin' / unit.stem).is_file())
                self.assertNotIn(str(stage), '\n'.join(lines))

    def test_units_are_valid(self):
        if not shutil.which('systemd-analyze'):
            self.skipTest('systemd-analyze is not installed')
        self.make_build()
        for prefix in self.prefix, self.tmp / '50% of a & b|c':
            with self.subTest(str(prefix)):
                done = self.install(prefix)
                self.assertEqual(done.returncode, 0, done.stdout)
                units = sorted((prefix / UNITS).iterdir())
                self.assertEqual(len(units), 4)
                self.verify(units)

    def verify(self, units):
        done = subprocess.run(
            ['systemd-analyze', 'verify', '--man=no', *map(str, units)],
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=120)
        # of the system's own units, as it may say something of those
        said = [x for x in done.stdout.splitlines()
                if 'qemu-' in x or str(self.tmp) in x]
        if done.returncode and not said:
            self.skipTest(f'systemd-analyze: {done.stdout.strip()}')
        self.assertEqual(said, [])

    def test_unit_without_its_program_is_invalid(self):
        """That is what the test above would find."""
        if not shutil.which('systemd-analyze'):
            self.skipTest('systemd-analyze is not installed')
        self.make_build()
        self.assertEqual(self.install(self.prefix).returncode, 0)
        (self.prefix / 'bin/qemu-storage-agent').unlink()
        with self.assertRaisesRegex(AssertionError, 'qemu-storage-agent'):
            self.verify([self.prefix / UNITS / 'qemu-storage-agent.service'])

    def test_manual_pages(self):
        self.make_build()
        self.assertEqual(self.install(self.prefix, self.tmp / 'd',
                                      umask=0o077).returncode, 0)
        man = self.tmp / 'd' / str(self.prefix)[1:] / 'share/man'
        there = {str(p.relative_to(man)) for p in man.rglob('*.?')}
        self.assertEqual(there, {f'man{p.suffix[1:]}/{p.name}'
                                 for p in PAGES.iterdir()})
        self.assertEqual(self.mode(man / 'man8/qemu-irq-affinity-helper.8'),
                         0o644)

    def test_no_build(self):
        self.assert_one_line(self.install(self.prefix), 'run make build first')
        self.assertFalse(self.prefix.exists())

    def test_prefix_must_be_absolute(self):
        self.make_build()
        self.assert_one_line(self.install('opt'), 'PREFIX absolute')
        self.assert_one_line(self.install(), 'PREFIX absolute')

    def test_prefix_that_no_unit_can_name(self):
        self.make_build()
        for name in 'a"b', "a'b", 'a\\b':
            self.assert_one_line(self.install(self.tmp / name), 'systemd')
            self.assertFalse((self.tmp / name).exists())

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


class Pages(unittest.TestCase):
    """The project's manual pages and units, and what QEMU's build has."""

    def pages(self):
        """All, from the sources."""
        found = [*PAGES.iterdir(), *(p for p in (PROJECT / 'src').rglob('*.?')
                                     if re.fullmatch(r'\.[1-8]', p.suffix))]
        self.assertGreater(len(found), len(COMMANDS))
        return found

    def test_every_command_has_one(self):
        self.assertLessEqual(set(COMMANDS), {p.name for p in self.pages()})

    def test_the_build_installs_the_rest(self):
        plan = PROJECT / 'build/out/meson-info/intro-installed.json'
        if not plan.is_file():
            self.skipTest('no build: run make build')
        installed = {Path(p) for p in json.loads(plan.read_text()).values()}
        if not any(p.name == 'qemu-storage-ctl' for p in installed):
            self.skipTest('this build is without the storage programs')
        expected = {Path('/usr/local/share/man', f'man{p.suffix[1:]}', p.name)
                    for p in self.pages() if p.parent != PAGES}
        expected |= {Path('/usr/local', UNITS, name)
                     for name in names(STORAGE, '.service')}
        self.assertEqual(expected - installed, set())
        for page in COMMANDS:
            name = Path(page).stem
            if name != 'hotpath-top':       # the script's
                self.assertIn(Path('/usr/local/bin', name), installed)

    def lint(self, *command):
        if not shutil.which(command[0]):
            self.skipTest(f'{command[0]} is not installed')
        for page in self.pages():
            with self.subTest(page.name):
                done = subprocess.run(
                    [*command, page], text=True, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    env={**os.environ, 'LC_ALL': 'C.UTF-8', 'PAGER': 'cat',
                         'MAN_KEEP_STDERR': '1'}, timeout=60)
                self.assertEqual((done.returncode, done.stderr), (0, ''))
                yield done.stdout

    def test_man_shows_them(self):
        for text in self.lint('man', '--warnings', '-l'):
            self.assertIn('NAME', text)

    def test_mandoc_lint(self):
        for text in self.lint('mandoc', '-T', 'lint', '-W', 'error'):
            self.assertEqual(text, '')


if __name__ == '__main__':
    unittest.main()
