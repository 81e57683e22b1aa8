# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bootstrap with a package manager, a root and systems made of files."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / 'scripts'

LIST = """# comment
python3    build  file:{root}/there
gcc        build  cmd:gcc
libone     build  pc:one|file:{root}/one.h
meson      build  dist:meson   1.5  wheel
valgrind   bench  cmd:valgrind
pattern    bench  file:{root}/th*re
module     docs   mod:no_such_module_here
clang      fuzz   cmd:clang
"""
DEBIAN = 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
UBUNTU = 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
OTHER = 'ID=other\nPRETTY_NAME="Other Linux 7"\n'
POLICY = """{name}:
  Installed: (none)
  Candidate: {main}
  Version table:
     {back} 100
        100 http://deb.debian.org/debian {codename}-backports/main amd64 Packages
     {main} 500
        500 http://deb.debian.org/debian {codename}/main amd64 Packages
other:
  Installed: (none)
  Candidate: 9
"""
# what the script calls, beside the tools made here
TOOLS = ('bash', 'env', 'awk', 'sed', 'cat', 'dirname', 'mkdir', 'tail',
         'grep', 'sort', 'head', 'sh')
DPKG_QUERY = """#!/bin/sh
for last; do :; done
grep "^$last " {tmp}/installed | sed 's/^[^ ]* /installed /' | grep .
"""
# --compare-versions A OP B, numbers with dots only
DPKG = """#!/bin/sh
low=$(printf '%s\\n%s\\n' "$2" "$4" | sort -V | head -n 1)
case $3 in ge) test "$low" = "$4" ;; *) exit 3 ;; esac
"""
APT_GET = """#!/bin/sh
echo "$@" >> {tmp}/apt-get.calls
test ! -e {tmp}/broken || {{ cat {tmp}/broken >&2; exit 100; }}
while test "$1" != install; do shift || exit 0; done
shift
for name; do echo "${{name%%/*}} 9" >> {tmp}/installed; done
"""
APT_PRIVATE = """#!/bin/sh
echo "$@" >> {tmp}/apt-private.calls
test ! -e {tmp}/offline || {{ echo "apt-private: no network" >&2; exit 1; }}
case $1 in config) echo {tmp}/apt.conf ;; *) cat {tmp}/policy ;; esac
"""
SUDO = '#!/bin/sh\necho sudo >> {tmp}/sudo.calls\nexec "$@"\n'


class Bootstrap(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.root = self.tmp / 'project'
        (self.root / 'scripts').mkdir(parents=True)
        # the script reads one file of the system; here it is ours
        text = (SCRIPTS / 'bootstrap').read_text()
        self.assertIn('/etc/os-release', text)
        self.write(self.root / 'scripts' / 'bootstrap',
                   text.replace('/etc/os-release', f'{self.tmp}/os-release'))
        (self.root / 'scripts' / 'packages.list').write_text(
            LIST.format(root=self.tmp))
        self.bin = self.tmp / 'bin'
        self.bin.mkdir()
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.tool('id', '#!/bin/sh\necho 0\n')
        self.tool('python3', '#!/bin/sh\n')
        (self.tmp / 'installed').write_text('')

    def write(self, path, text):
        path.write_text(text)
        path.chmod(0o755)

    def tool(self, name, text):
        self.write(self.bin / name, text.format(tmp=self.tmp))

    def distribution(self, release, *installed, main='9', back='9'):
        """Be a system with dpkg and apt."""
        codename = re.search(r'CODENAME=(\w+)', release).group(1)
        (self.tmp / 'os-release').write_text(release)
        (self.tmp / 'installed').write_text(
            ''.join(f'{name} 9\n' for name in installed))
        (self.tmp / 'policy').write_text(POLICY.format(
            name='meson', main=main, back=back, codename=codename))
        self.tool('dpkg-query', DPKG_QUERY)
        self.tool('dpkg', DPKG)
        self.tool('apt-get', APT_GET)
        self.write(self.root / 'scripts' / 'apt-private',
                   APT_PRIVATE.format(tmp=self.tmp))

    def run_it(self, *args):
        # the directories that the script adds to PATH hold the real tools
        text = (self.root / 'scripts' / 'bootstrap').read_text()
        self.write(self.root / 'scripts' / 'bootstrap',
                   text.replace('PATH=$PATH:/usr/sbin:/sbin', ''))
        return subprocess.run(
            [self.root / 'scripts' / 'bootstrap', *args], text=True,
            env={'PATH': str(self.bin)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def calls(self, name):
        path = self.tmp / f'{name}.calls'
        return path.read_text() if path.exists() else ''

    ALL = ('python3', 'gcc', 'libone', 'valgrind', 'pattern', 'module')

    def test_nothing_missing_needs_nobody(self):
        self.distribution(DEBIAN, *self.ALL, 'meson')
        self.tool('id', '#!/bin/sh\necho 1000\n')
        done = self.run_it()
        self.assertEqual((done.returncode, done.stdout), (0, ''))
        self.assertEqual(self.calls('apt-get') + self.calls('apt-private'), '')

    def test_check_names_what_is_missing(self):
        self.distribution(DEBIAN, 'python3', 'libone', 'valgrind')
        done = self.run_it('--check')
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout,
                         'missing: gcc meson pattern module\n')
        self.assertEqual(self.run_it('--check', 'bench').stdout,
                         'missing: pattern\n')
        self.assertEqual(self.calls('apt-get'), '')

    def test_fuzz_is_for_who_asks(self):
        self.distribution(DEBIAN, *self.ALL, 'meson')
        self.assertEqual(self.run_it('--check').stdout, '')
        self.assertEqual(self.run_it('--check', 'build', 'fuzz').stdout,
                         'missing: clang\n')

    def test_too_old_is_missing(self):
        self.distribution(DEBIAN, *self.ALL)
        with open(self.tmp / 'installed', 'a') as stream:
            stream.write('meson 1.0\n')
        self.assertEqual(self.run_it('--check').stdout, 'missing: meson\n')

    def test_installs_once(self):
        self.distribution(DEBIAN, 'python3')
        done = self.run_it('build')
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('install gcc libone meson\n', self.calls('apt-get'))
        self.assertEqual(self.run_it('build').stdout, '')
        self.assertEqual(len(self.calls('apt-get').splitlines()), 1)

    def test_backports(self):
        self.distribution(DEBIAN, *self.ALL, main='1.0', back='1.7')
        done = self.run_it()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn('install meson/bookworm-backports\n',
                      self.calls('apt-get'))

    def test_too_old_everywhere(self):
        self.distribution(DEBIAN, *self.ALL, main='1.0', back='1.1')
        done = self.run_it()
        self.assertEqual(done.returncode, 1)
        self.assertIn('still missing after the installation: meson',
                      done.stdout)

    def test_ubuntu_does_without_an_old_meson(self):
        self.distribution(UBUNTU, 'python3', main='1.3.2', back='1.3.2')
        done = self.run_it()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertNotIn('meson', self.calls('apt-get'))
        self.assertEqual(self.run_it('--check').returncode, 0)

    def test_ubuntu_takes_a_new_meson(self):
        self.distribution(UBUNTU, 'python3', main='1.7')
        done = self.run_it()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn(' meson', self.calls('apt-get'))

    def test_user_with_sudo(self):
        self.distribution(DEBIAN, 'python3')
        self.tool('id', '#!/bin/sh\necho 1000\n')
        done = self.run_it('build')
        self.assertEqual(done.returncode, 1)
        self.assertIn('neither root nor sudo: gcc libone meson', done.stdout)
        self.tool('sudo', SUDO)
        done = self.run_it('build')
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(self.calls('sudo'), 'sudo\n')

    def test_no_package_lists(self):
        self.distribution(DEBIAN, 'python3')
        (self.tmp / 'offline').touch()
        done = self.run_it('build')
        self.assertEqual(done.returncode, 1)
        self.assertIn('apt-private: no network', done.stdout)
        self.assertEqual(self.calls('apt-get'), '')

    def test_failing_installation(self):
        self.distribution(DEBIAN, 'python3')
        (self.tmp / 'broken').write_text('E: Failed to fetch http://x\n')
        done = self.run_it('build')
        self.assertEqual(done.returncode, 1)
        self.assertIn('apt-get install failed (is there a network?)',
                      done.stdout)
        self.assertIn('bootstrap.log', done.stdout)

    def test_elsewhere_only_what_is_absent(self):
        (self.tmp / 'os-release').write_text(OTHER)
        (self.tmp / 'there').touch()
        self.tool('gcc', '#!/bin/sh\n')
        done = self.run_it()
        self.assertEqual(done.returncode, 1)
        self.assertIn('Other Linux 7', done.stdout)
        names = re.findall(r'^  (\S+) +(\S+)$', done.stdout, re.M)
        self.assertEqual([n for n, _ in names],
                         ['libone', 'valgrind', 'module'])
        self.assertEqual(names[1][1], 'cmd:valgrind')

    def test_elsewhere_with_all(self):
        (self.tmp / 'os-release').write_text(OTHER)
        for name in 'there', 'one.h':
            (self.tmp / name).touch()
        self.tool('gcc', '#!/bin/sh\n')
        done = self.run_it('build')
        self.assertEqual((done.returncode, done.stdout), (0, ''))
        self.assertEqual(self.run_it('bench').returncode, 1)
        self.tool('valgrind', '#!/bin/sh\n')
        self.assertEqual(self.run_it('bench').returncode, 0)

    def test_elsewhere_with_pkg_config(self):
        (self.tmp / 'os-release').write_text(OTHER)
        (self.tmp / 'there').touch()
        self.tool('gcc', '#!/bin/sh\n')
        self.tool('pkg-config', '#!/bin/sh\ntest "$*" = "--exists one"\n')
        self.assertEqual(self.run_it('build').returncode, 0)

    def test_old_debian_is_elsewhere(self):
        self.distribution(DEBIAN.replace('12', '11'))
        done = self.run_it()
        self.assertEqual(done.returncode, 1)
        self.assertIn('not a system this script installs on', done.stdout)
        self.assertEqual(self.calls('apt-get'), '')

    def test_without_os_release(self):
        done = self.run_it()
        self.assertEqual(done.returncode, 1)
        self.assertIn('not a system this script installs on', done.stdout)
        self.assertNotIn('No such file', done.stdout)

    def test_unknown_option(self):
        done = self.run_it('--nonsense')
        self.assertEqual(done.returncode, 1)
        self.assertIn('--nonsense', done.stdout)


class List(unittest.TestCase):
    def test_every_line(self):
        rows = [line.split() for line in
                (SCRIPTS / 'packages.list').read_text().splitlines()
                if line and not line.startswith('#')]
        self.assertGreater(len(rows), 30)
        self.assertEqual(len({row[0] for row in rows}), len(rows))
        for row in rows:
            self.assertIn(len(row), (3, 4, 5), row)
            self.assertIn(row[1], ('build', 'guest', 'libvirt', 'check',
                                   'bench', 'docs', 'fuzz'))
            for probe in row[2].split('|'):
                self.assertRegex(probe, r'^(cmd|pc|file|mod|dist):\S+$')
            # a probe of a distribution is for what may be absent
            self.assertEqual(row[2].startswith('dist:'), row[4:] == ['wheel'])


if __name__ == '__main__':
    unittest.main()
