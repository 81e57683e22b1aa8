# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/build: what stops it, and where configure gets meson from."""
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'build'
PYTHON = '/usr/bin/python3'
# what the script calls, beside the tools made here
TOOLS = ('bash', 'env', 'awk', 'cat', 'dirname', 'mkdir', 'tail', 'grep',
         'head', 'sed', 'sh', 'rm', 'mv', 'ln', 'touch')
DF = """#!/bin/sh
echo 'Filesystem 1048576-blocks Used Available Capacity Mounted on'
echo 'x 9999 1 {free} 1% /'
"""
CONFIGURE = """#!/bin/sh
echo "$@" > arguments
echo "$PIP_FIND_LINKS" > links
touch build.ninja
"""


class Build(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.root = self.tmp / 'project'
        self.scripts = self.root / 'scripts'
        self.scripts.mkdir(parents=True)
        shutil.copy(SCRIPT, self.scripts)
        (self.root / 'UPSTREAM').write_text(
            'tarball: up.tar.xz\nseries: 0\n')
        (self.scripts / 'configure.flags').write_text('# x\n--one\n')
        self.packages('no-such-distribution')
        for name in 'fetch-base', 'series':
            self.write(self.scripts / name, '#!/bin/sh\n')
        self.tree = self.root / 'build' / 'base' / 'tree'
        self.tree.mkdir(parents=True)
        self.write(self.tree / 'configure', CONFIGURE)
        self.out = self.tree.parent / 'out'
        self.bin = self.tmp / 'bin'
        self.bin.mkdir()
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        for name in 'gcc', 'pkg-config', 'ninja':
            self.tool(name, '#!/bin/sh\necho "[1/1] $*"\n')
        self.tool('nproc', '#!/bin/sh\necho 2\n')
        self.tool('df', DF.format(free=99999))

    def write(self, path, text):
        path.write_text(text)
        path.chmod(0o755)

    def tool(self, name, text):
        self.write(self.bin / name, text)

    def packages(self, name, least='1.5'):
        (self.scripts / 'packages.list').write_text(
            f'# x\ngcc build cmd:gcc\nmeson build dist:{name} {least} wheel\n')

    def wheels(self):
        folder = self.tree / 'python' / 'wheels'
        folder.mkdir(parents=True)
        (folder / 'meson-1.9.0-py3-none-any.whl').touch()

    def build(self, *args, **env):
        return subprocess.run(
            [self.scripts / 'build', *(args or ['base'])], text=True,
            env={'PATH': str(self.bin), **env}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def assert_one_line(self, done, *words):
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(len(done.stdout.splitlines()), 1, done.stdout)
        for word in words:
            self.assertIn(word, done.stdout)
        self.assertFalse((self.out / 'build.ninja').exists())

    def test_no_compiler(self):
        for name in 'gcc', 'ninja', 'pkg-config':
            tool = self.bin / name
            text = tool.read_text()
            tool.unlink()
            self.assert_one_line(self.build(), f'build: {name} is not',
                                 'run scripts/bootstrap')
            self.write(tool, text)

    def test_little_space(self):
        self.tool('df', DF.format(free=12))
        self.assert_one_line(self.build(), '12 MB free', '2500 MB',
                             'make room')

    def test_space_is_for_a_new_build(self):
        self.wheels()
        self.assertEqual(self.build().returncode, 0)
        self.tool('df', DF.format(free=12))
        self.assertEqual(self.build().returncode, 0)

    def test_no_venv(self):
        script = self.scripts / 'build'
        text = script.read_text()
        self.assertIn(f'python={PYTHON}\n', text)
        self.tool('python', '#!/bin/sh\nexit 1\n')
        self.write(script, text.replace(f'python={PYTHON}',
                                        f'python={self.bin}/python'))
        self.assert_one_line(self.build(), 'python3-venv is not installed',
                             'run scripts/bootstrap')

    def test_no_variant(self):
        self.assertEqual(self.build('nonsense').returncode, 2)

    def test_configures_once(self):
        self.wheels()
        done = self.build()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('configuring base', done.stdout)
        arguments = (self.out / 'arguments').read_text()
        self.assertIn('--one', arguments)
        self.assertIn(f'--python={PYTHON}', arguments)
        self.assertNotIn('configuring', self.build().stdout)
        (self.scripts / 'configure.flags').write_text('--two\n')
        self.assertIn('configuring', self.build().stdout)

    def test_fuzz(self):
        """clang, and only the fuzzer; gcc is not asked for."""
        self.tree = self.root / 'build' / 'tree'
        self.tree.mkdir()
        self.write(self.tree / 'configure', CONFIGURE)
        self.wheels()
        (self.bin / 'gcc').unlink()
        done = self.build('fuzz')
        self.assertEqual(done.returncode, 1)
        self.assertIn('clang is not installed: run scripts/bootstrap build '
                      'fuzz', done.stdout)
        self.tool('clang', '#!/bin/sh\n')
        done = self.build('fuzz')
        self.assertEqual(done.returncode, 0, done.stdout)
        arguments = (self.root / 'build' / 'out-fuzz' /
                     'arguments').read_text()
        for flag in '--cc=clang', '--enable-fuzzing', '--enable-asan':
            self.assertIn(flag, arguments)
        self.assertRegex(done.stdout, r'qemu-fuzz-x86_64\n$')

    def test_failing_configure(self):
        self.wheels()
        self.write(self.tree / 'configure',
                   '#!/bin/sh\necho "ERROR: no glib"; exit 1\n')
        done = self.build()
        self.assertEqual(done.returncode, 1)
        self.assertIn('ERROR: no glib', done.stdout)
        self.assertIn('out.configure.log', done.stdout)
        self.assertFalse(self.out.exists())

    def test_sources_with_wheels(self):
        self.wheels()
        self.assertEqual(self.build().returncode, 0)
        self.assertEqual((self.out / 'links').read_text(), '\n')

    def system_package(self, version):
        """Show /usr/bin/python3 a distribution."""
        info = self.tmp / 'site' / f'hotpath_trial-{version}.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: hotpath-trial\nVersion: {version}\n')
        self.packages('hotpath-trial')
        return {'PYTHONPATH': str(info.parent)}

    def test_new_system_packages_need_no_wheels(self):
        done = self.build(**self.system_package('1.10.2'))
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual((self.out / 'links').read_text(), '\n')

    def test_no_wheels_and_no_network(self):
        env = self.system_package('1.4.9')
        done = self.build(PIP_INDEX_URL='http://127.0.0.1:9/', **env)
        self.assert_one_line(done, 'meson', 'network', 'up.tar.xz',
                             'wheels.log')

    def test_downloaded_wheels_are_used(self):
        pins = subprocess.run(
            ['bash', '-c', "eval \"$(sed -n '/^wheel_pins()/,/^}/p' \"$1\")\";"
             ' wheel_pins', 'x', SCRIPT], text=True, check=True,
            stdout=subprocess.PIPE).stdout
        self.assertRegex(pins, r'^meson==[\d.]+ --hash=sha256:[0-9a-f]{64}\n'
                               r'pycotap==[\d.]+ --hash=sha256:[0-9a-f]{64}\n')
        folder = self.root / 'build' / 'wheels'
        folder.mkdir()
        (folder / 'pins').write_text(pins)
        for env, links in (({}, f'{folder}\n'),
                           ({'PIP_FIND_LINKS': '/more'}, f'{folder} /more\n')):
            shutil.rmtree(self.out, ignore_errors=True)
            done = self.build(**env)
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertEqual((self.out / 'links').read_text(), links)


if __name__ == '__main__':
    unittest.main()
