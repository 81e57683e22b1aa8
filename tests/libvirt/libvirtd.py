# SPDX-License-Identifier: GPL-2.0-or-later
"""A private libvirtd for tests, and virsh to talk to it.

As root it runs in a mount namespace of its own (see private-libvirtd) and
serves qemu:///system; as another user it serves qemu:///session from private
XDG directories.  Neither touches the system's configuration or daemons.
"""
import atexit
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'guest'))

from guest import console_tail, guest_files, write_initrd   # noqa: E402
from hotpath_paths import ROOT, qemu_binary, report_dir     # noqa: E402

START_LIMIT_S = 30
VIRSH_LIMIT_S = 120

QEMU_CONF = '''# SPDX-License-Identifier: GPL-2.0-or-later
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
seccomp_sandbox = 0
'''
LIBVIRTD_CONF = '''auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tcp = 0
log_outputs = "3:stderr"
'''


class VirshError(AssertionError):
    """A virsh command failed; the text is what it said."""


def find_libvirtd():
    """Return the path of libvirtd, or skip with the reason."""
    path = shutil.which('libvirtd', path=os.environ.get('PATH', '')
                        + ':/usr/sbin:/sbin')
    if not path:
        raise unittest.SkipTest('libvirtd not found (package libvirt-daemon)')
    if not shutil.which('virsh'):
        raise unittest.SkipTest('virsh not found (package libvirt-clients)')
    return path


def _mounts_allowed():
    done = subprocess.run(['unshare', '--mount', '--propagation', 'private',
                           'mount', '-t', 'tmpfs', 'none', '/mnt'],
                          stderr=subprocess.PIPE, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


def _account_file(name, line, has_user):
    text = Path('/etc', name).read_text()
    return text if has_user else text.rstrip('\n') + f'\n{line}\n'


class Libvirtd:
    """A running private libvirtd.

    @listen: text for libvirtd.conf, when it is to listen on the network; only
             as root
    """

    def __init__(self, name='libvirtd', listen=''):
        self.log = report_dir('libvirt') / f'{name}.log'
        self._listen = listen
        self.dir = Path(tempfile.mkdtemp(prefix='hotvirt-', dir='/tmp'))
        self._process = None
        # unittest runs no clean-ups when it is interrupted
        atexit.register(self.close)
        libvirtd = find_libvirtd()
        start = self._system if os.geteuid() == 0 else self._session
        try:
            self._command, self._env, self.uri = start(libvirtd)
            self.log.write_bytes(b'')
            self.run()
        except BaseException:
            self.close()
            raise

    def run(self):
        """Start it; wait until it answers."""
        with open(self.log, 'ab') as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)
        self._wait_ready()

    def kill(self):
        """End it as a crash would; its domains run on."""
        self._process.kill()
        self._process.wait()

    def _system(self, libvirtd):
        reason = _mounts_allowed()
        if reason:
            raise unittest.SkipTest('a mount namespace is refused here: '
                                    f'{reason}')
        etc = self.dir / 'etc'
        etc.mkdir()
        (etc / 'qemu.conf').write_text(QEMU_CONF)
        (etc / 'libvirtd.conf').write_text(
            LIBVIRTD_CONF + (self._listen or 'listen_tls = 0\n'))
        try:
            pwd.getpwnam('libvirt-qemu')
            known = True
        except KeyError:
            known = False
        for name, line in (
                ('passwd', 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin'),
                ('group', 'libvirt-qemu:x:64055:')):
            (self.dir / name).write_text(_account_file(name, line, known))
        env = dict(os.environ, PATH=f'{os.path.dirname(libvirtd)}:'
                   + os.environ.get('PATH', ''))
        command = ['unshare', '--mount', '--propagation', 'private',
                   str(HERE / 'private-libvirtd'), str(self.dir),
                   *(['--listen'] if self._listen else [])]
        return (command, env,
                f'qemu+unix:///system?socket={self.dir}/run/libvirt-sock')

    def _session(self, libvirtd):
        env = dict(os.environ)
        for part in ('config', 'cache', 'data', 'runtime', 'state'):
            folder = self.dir / part
            folder.mkdir(mode=0o700)
            suffix = 'DIR' if part == 'runtime' else 'HOME'
            env[f'XDG_{part.upper()}_{suffix}'] = str(folder)
        etc = self.dir / 'config' / 'libvirt'
        etc.mkdir()
        (etc / 'qemu.conf').write_text('stdio_handler = "file"\n'
                                       'security_driver = "none"\n')
        (etc / 'libvirtd.conf').write_text('log_outputs = "3:stderr"\n')
        socket = self.dir / 'runtime' / 'libvirt' / 'libvirt-sock'
        return ([libvirtd, '--timeout', '0'], env,
                f'qemu+unix:///session?socket={socket}')

    def _wait_ready(self):
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            try:
                self.virsh('uri')
                return
            except VirshError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
        raise AssertionError('libvirtd did not start; the end of '
                             f'{self.log}:\n{console_tail(self.log)}')

    def close(self):
        """End the domains and libvirtd, and remove what it made."""
        atexit.unregister(self.close)
        if self._process:
            self._destroy_domains()
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _destroy_domains(self):
        try:
            for name in self.virsh('list', '--name').split():
                self.virsh('destroy', name)
        except (VirshError, subprocess.TimeoutExpired):
            pass        # libvirtd did not start, or is stuck

    def virsh(self, *args):
        """Run a virsh command; return its output or raise VirshError."""
        done = subprocess.run(['virsh', '-q', '-c', self.uri, *map(str, args)],
                              stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=VIRSH_LIMIT_S)
        if done.returncode:
            raise VirshError(done.stderr.strip())
        return done.stdout.strip()

    def qmp(self, domain, command, **arguments):
        """Run a QMP command of a domain; return its 'return' value."""
        request = {'execute': command}
        if arguments:
            request['arguments'] = arguments
        answer = json.loads(self.virsh('qemu-monitor-command', domain,
                                       json.dumps(request)))
        if 'error' in answer:
            raise VirshError(answer['error']['desc'])
        return answer['return']


class Domain:
    """A domain made from an XML file of docs/libvirt/."""

    def __init__(self, daemon, xml_name, script, edit=lambda text: text,
                 files=None, label=None):
        """
        @label: of the report directory, by default @xml_name
        @script: what the guest runs, see tests/guest/init
        @edit: changes the XML text before it is defined
        @files: {path: bytes} to add to the guest's root
        """
        self.daemon = daemon
        self.folder = report_dir('libvirt', label or xml_name)
        self.serial = self.folder / 'serial.log'
        self.console = self.folder / 'console.log'
        for path in (self.serial, self.console):
            path.write_bytes(b'')
        self._initrd = write_initrd(self.folder / 'initrd', script, files)
        text = edit((ROOT / 'docs/libvirt' / f'{xml_name}.xml').read_text())
        for key, value in (('EMULATOR', qemu_binary()),
                           ('KERNEL', guest_files()[0].image),
                           ('INITRD', self._initrd), ('SERIAL', self.serial),
                           ('CONSOLE', self.console)):
            text = text.replace(f'@{key}@', str(value))
        self.xml = self.folder / 'domain.xml'
        self.xml.write_text(text)
        self.name = text.split('<name>')[1].split('</name>')[0]

    def define(self):
        self.daemon.virsh('define', '--validate', self.xml)

    def start(self):
        self.daemon.virsh('start', self.name)

    def state(self):
        return self.daemon.virsh('domstate', self.name).split('\n')[0]

    def remove(self):
        """Destroy and undefine it, as far as it is there."""
        for command in ('destroy', 'undefine'):
            try:
                self.daemon.virsh(command, self.name)
            except VirshError:
                pass
        self._initrd.unlink(missing_ok=True)

    def results(self):
        """Return the results that the guest has written so far."""
        found = {}
        for line in self.serial.read_text(errors='replace').splitlines():
            words = line.split(' ', 2)
            if words[0] == 'RESULT' and len(words) > 1:
                found[words[1]] = words[2] if len(words) > 2 else ''
            elif words[0] == 'DONE' and len(words) > 1:
                found['DONE'] = words[1]
        return found

    def wait(self, until, what, limit_s=120):
        """Wait until until(results) holds; return the results."""
        deadline = time.monotonic() + limit_s
        while True:
            results = self.results()
            if until(results):
                return results
            if time.monotonic() > deadline:
                raise AssertionError(
                    f'{self.name}: no "{what}" within {limit_s} s; results '
                    f'{results}; console ({self.console}):\n'
                    f'{console_tail(self.console)}')
            time.sleep(0.2)


class LibvirtTest(unittest.TestCase):
    """Base of tests that share one private libvirtd."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = Libvirtd()
        cls.addClassCleanup(cls.daemon.close)

    def domain(self, *args, **options):
        """Define a domain that is removed after the test."""
        domain = Domain(self.daemon, *args, **options)
        self.addCleanup(domain.remove)
        domain.define()
        return domain
