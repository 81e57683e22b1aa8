# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/apt-private: which archive it takes, which failure stops it."""
import contextlib
import io
import os
import shutil
import tempfile
import unittest
from pathlib import Path

from as_module import load

KEY = '/usr/share/keyrings/debian-archive-keyring.gpg'

DEBIAN = f"""# comment
Types: deb
URIs: http://deb.debian.org/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: {KEY}

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
"""
DOCKER = ('deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] '
          'https://download.docker.com/linux/debian bookworm stable\n')
MIRROR = """deb http://mirror.example/pub/debian bookworm main contrib
deb-src http://mirror.example/pub/debian bookworm main
deb http://mirror.example/pub/debian bookworm-updates main
"""
INLINE_KEY = """Types: deb
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 x
"""
UBUNTU = """Types: deb
URIs: http://archive.ubuntu.com/ubuntu/
Suites: noble noble-updates noble-backports
Components: main universe
"""
RELEASE = {
    'debian12': 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n',
    'debian13': 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n',
    'ubuntu': 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'}
RESOLVE = "Could not resolve 'x'"
SUMMARY = 'E: Some index files failed to download. They have been ignored.'


class Sandbox(unittest.TestCase):
    """The script as a module, with a system of files of its own."""

    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.apt = load('apt-private')
        self.apt.ROOT = self.tmp
        self.apt.APT = self.tmp / 'build' / 'apt'
        self.apt.CONF = self.apt.APT / 'apt.conf'
        self.apt.STAMP = self.apt.APT / 'lists-fetched'
        self.apt.SYSTEM = self.tmp / 'etc'
        self.apt.OS_RELEASE = self.tmp / 'os-release'
        (self.apt.SYSTEM / 'sources.list.d').mkdir(parents=True)
        (self.tmp / 'UPSTREAM').write_text('source-suite:   sid\n')
        self.system('debian12')

    def system(self, release, **sources):
        self.apt.OS_RELEASE.write_text(RELEASE[release])
        for name, text in sources.items():
            path = self.apt.SYSTEM / 'sources.list.d' / name.replace('_', '.')
            path.write_text(text)


class ArchiveOf(Sandbox):
    def test_plain(self):
        self.system('debian12', debian_sources=DEBIAN)
        self.assertEqual(self.apt.archive_of('bookworm'),
                         ('http://deb.debian.org/debian', KEY))

    def test_third_party_that_is_read_first(self):
        self.system('debian12', docker_list=DOCKER, zz_sources=DEBIAN)
        self.assertEqual(self.apt.archive_of('bookworm'),
                         ('http://deb.debian.org/debian', KEY))

    def test_host_without_key(self):
        self.system('debian12', docker_list=DOCKER, zz_list=(
            'deb http://ftp.de.debian.org/debian bookworm main\n'))
        self.assertEqual(self.apt.archive_of('bookworm'),
                         ('http://ftp.de.debian.org/debian', None))

    def test_key_of_the_archive(self):
        self.system('debian12', docker_list=DOCKER, zz_list=(
            f'deb [signed-by={KEY}] http://mirror.example/d bookworm main\n'))
        self.assertEqual(self.apt.archive_of('bookworm'),
                         ('http://mirror.example/d', KEY))

    def test_mirror(self):
        self.system('debian12', docker_list=DOCKER, zz_list=MIRROR)
        self.assertEqual(self.apt.archive_of('bookworm'),
                         ('http://mirror.example/pub/debian', None))

    def test_mirror_method_with_a_key_in_place(self):
        self.system('debian12', debian_sources=INLINE_KEY)
        uri, key = self.apt.archive_of('bookworm')
        self.assertEqual(uri, 'mirror+file:///etc/apt/mirrors/debian.list')
        self.assertIn('BEGIN PGP', key)

    def test_disabled(self):
        self.system('debian12', debian_sources='Enabled: no\n' + DEBIAN[10:])
        self.assertIsNone(self.apt.archive_of('bookworm'))

    def test_only_a_third_party(self):
        self.system('debian12', docker_list=DOCKER)
        self.assertIsNone(self.apt.archive_of('bookworm'))
        stanzas = self.apt.extra_stanzas()
        for text in stanzas:
            self.assertIn('URIs: http://deb.debian.org/debian\n', text)
            self.assertIn(f'Signed-By: {KEY}\n', text)


class Stanzas(Sandbox):
    def test_backports_on_12_only(self):
        self.system('debian12', debian_sources=DEBIAN)
        source, backports = self.apt.extra_stanzas()
        self.assertIn('Types: deb-src\n', source)
        self.assertIn('Suites: sid\n', source)
        self.assertIn('Suites: bookworm-backports\n', backports)
        self.system('debian13', debian_sources=DEBIAN.replace('bookworm',
                                                              'trixie'))
        self.assertEqual(len(self.apt.extra_stanzas()), 1)

    def test_ubuntu_gets_nothing(self):
        self.system('ubuntu', ubuntu_sources=UBUNTU)
        self.assertEqual(self.apt.extra_stanzas(), [])
        self.assertEqual(self.apt.needed(),
                         ('http://archive.ubuntu.com/ubuntu', None, ['noble']))

    def test_no_os_release(self):
        self.apt.OS_RELEASE.unlink()
        self.assertEqual(self.apt.extra_stanzas(), [])

    def test_new_sources_ask_for_new_lists(self):
        self.system('debian12', debian_sources=DEBIAN)
        self.apt.write_config()
        self.apt.STAMP.touch()
        self.apt.write_config()
        self.assertTrue(self.apt.STAMP.exists())
        self.system('debian12', docker_list=DOCKER)
        self.apt.write_config()
        self.assertFalse(self.apt.STAMP.exists())


class Refresh(Sandbox):
    """apt-get update as a script that complains."""

    def setUp(self):
        super().setUp()
        self.system('debian12', debian_sources=DEBIAN, docker_list=DOCKER)
        self.apt.write_config()
        # some repository's list came
        self.list = self.apt.APT / 'lists' / 'x_InRelease'
        self.list.touch()

    def update(self, *complaints, force=False):
        """Run refresh(); return what it says and why it ended, or None."""
        tools = self.tmp / 'tools'
        tools.mkdir(exist_ok=True)
        (tools / 'said').write_text(''.join(f'{c}\n' for c in complaints))
        tool = tools / 'apt-get'
        tool.write_text(f'#!/bin/sh\necho "$@" > {tools}/args\n'
                        f'cat {tools}/said >&2\n'
                        f'! grep -q . {tools}/said || exit 100\n')
        tool.chmod(0o755)
        before = os.environ['PATH']
        os.environ['PATH'] = f'{tools}:{before}'
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                self.apt.refresh(dict(os.environ), force)
        except SystemExit as err:
            return said.getvalue(), str(err)
        finally:
            os.environ['PATH'] = before
        return said.getvalue(), None

    def test_good(self):
        self.assertIsNone(self.update()[1])
        self.assertTrue(self.apt.STAMP.exists())
        self.assertIn('Error-Mode=any',
                      (self.tmp / 'tools' / 'args').read_text())

    def test_no_network(self):
        for suite in 'bookworm', 'bookworm-backports':
            _, end = self.update(
                'E: Failed to fetch http://deb.debian.org/debian/dists/'
                f'{suite}/InRelease  {RESOLVE}', SUMMARY)
            self.assertIn('network', end)
            self.assertIn(RESOLVE, end)
            self.assertNotIn('\n', end)
            self.assertFalse(self.apt.STAMP.exists())

    def test_error_without_an_address(self):
        _, end = self.update('E: Could not get lock /x')
        self.assertIn('Could not get lock', end)

    def test_unsigned(self):
        _, end = self.update("E: The repository 'http://deb.debian.org/debian "
                             "bookworm InRelease' is not signed.")
        self.assertIn('is not signed', end)

    def test_others_do_not_stop_it(self):
        lines = ('E: Failed to fetch https://download.docker.com/linux/debian/'
                 f'dists/bookworm/InRelease  {RESOLVE}',
                 'E: Failed to fetch http://deb.debian.org/debian/dists/sid/'
                 f'InRelease  {RESOLVE}', SUMMARY)
        self.list.unlink()
        self.assertIn('docker', self.update(*lines)[1])
        self.list.touch()
        said, end = self.update(*lines)
        self.assertIsNone(end)
        self.assertIn('docker', said)
        self.assertTrue(self.apt.STAMP.exists())

    def test_earlier_lists_will_do(self):
        self.apt.STAMP.touch()
        os.utime(self.apt.STAMP, (1, 1))
        line = ('E: Failed to fetch http://deb.debian.org/debian/dists/'
                f'bookworm/InRelease  {RESOLVE}')
        said, end = self.update(line)
        self.assertIsNone(end)
        self.assertIn(RESOLVE, said)
        self.assertEqual(self.apt.STAMP.stat().st_mtime, 1)
        self.assertIsNotNone(self.update(line, force=True)[1])


if __name__ == '__main__':
    unittest.main()
