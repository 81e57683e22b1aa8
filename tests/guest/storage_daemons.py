# SPDX-License-Identifier: GPL-2.0-or-later
"""Run qemu-storage-agent and qemu-storage-controller, and talk to them."""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from guest import is_base_build
from hotpath_paths import qemu_build, report_dir

WAIT_S = 60


def daemon_binary(name):
    """Return the path of one of the programs, or skip."""
    if is_base_build():
        raise unittest.SkipTest('the unpatched base has no storage daemons')
    for path in (Path(os.environ.get('STORAGE_DAEMONS', '/nonexistent'), name),
                 qemu_build() / 'contrib' / 'storage-growth' / name):
        if os.access(path, os.X_OK):
            return path
    raise unittest.SkipTest(f'{name} was not built (package libglib2.0-dev)')


class Peer:
    """A connection of JSON lines."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT_S)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self.file = self.sock.makefile('rwb')

    def send(self, **message):
        """Send an object."""
        self.file.write(json.dumps(message).encode() + b'\n')
        self.file.flush()

    def receive(self):
        """Wait for an object; None at the end."""
        line = self.file.readline()
        return json.loads(line) if line else None

    def ask(self, **message):
        """Send an object, and wait for one."""
        self.send(**message)
        return self.receive()

    def silent(self, seconds=0.3):
        """Whether nothing comes for a while."""
        self.sock.settimeout(seconds)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(WAIT_S)

    def close(self):
        """Hang up."""
        try:
            self.file.close()
        except OSError:
            pass                    # the other side is gone
        self.sock.close()


class Daemons:
    """A directory with sockets, a configuration, a journal; its processes."""

    def __init__(self, policies):
        self.dir = Path(tempfile.mkdtemp(prefix='hotsg-', dir='/tmp'))
        self.qmp = self.dir / 'qmp'
        self.qmp.mkdir()
        self.socket = self.dir / 'controller'
        self.journal = self.dir / 'journal'
        self.config = self.dir / 'config'
        self.configure(policies)
        self.log = open(report_dir('guest', 'storage') / 'daemons.log', 'ab')
        self.controller = self.agent = None
        self.peers = []

    def configure(self, policies, **limits):
        """Write the configuration."""
        self.config.write_text(json.dumps(
            {'policies': policies, **{key.replace('_', '-'): value
                                      for key, value in limits.items()}}))
        self.config.chmod(0o644)        # whatever the umask says

    def _start(self, *command):
        return subprocess.Popen([str(x) for x in command], stdout=self.log,
                                stdin=subprocess.DEVNULL, stderr=self.log)

    def start_controller(self):
        """Start the controller; wait until it listens."""
        self.controller = self._start(
            daemon_binary('qemu-storage-controller'), '-l',
            f'unix:{self.socket}', '-c', self.config, '-j', self.journal)
        # a child of one that was killed may still hold its socket
        while True:
            try:
                if self.connect().ask(type='history', limit=0):
                    break
            except OSError:
                pass

    def start_agent(self):
        """Start the agent."""
        self.agent = self._start(
            daemon_binary('qemu-storage-agent'), '-d', self.qmp, '-C',
            f'unix:{self.socket}')

    def descriptors(self):
        """How many files the controller has open."""
        return len(os.listdir(f'/proc/{self.controller.pid}/fd'))

    def connect(self):
        """Connect to the controller; wait until that is possible."""
        end = time.monotonic() + WAIT_S
        while True:
            try:
                self.peers.append(Peer(self.socket))
                return self.peers[-1]
            except OSError:
                if self.controller.poll() is not None:
                    raise AssertionError('the controller has ended') from None
                if time.monotonic() > end:
                    raise
                time.sleep(0.002)

    @staticmethod
    def kill(process):
        """Kill -9."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def ctl(self, *words):
        """Run qemu-storage-ctl; return (exit status, output)."""
        done = subprocess.run(
            [str(daemon_binary('qemu-storage-ctl')), '-C',
             f'unix:{self.socket}', *map(str, words)], text=True, timeout=30,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout

    def wait_listed(self, text):
        """Wait until qemu-storage-ctl list shows something."""
        end = time.monotonic() + WAIT_S
        while text not in self.ctl('list')[1]:
            if time.monotonic() > end:
                raise AssertionError(f'"{text}" is not listed, but: '
                                     + self.ctl('list')[1])
            time.sleep(0.05)

    def records(self):
        """The journal's records."""
        return [json.loads(line.split(' ', 1)[1])
                for line in self.journal.read_text().splitlines()]

    def growths(self, what='begin'):
        """The journal's records of a kind."""
        return [r for r in self.records() if r['what'] == what]

    def wait_ended(self):
        """Wait until the journal knows the end of each growth.

        The answer comes before.  A controller that is killed in between makes
        sure of the size again, which a test may have changed by then.
        """
        end = time.monotonic() + WAIT_S
        while len(self.growths('end')) < len(self.growths()):
            if time.monotonic() > end:
                raise AssertionError('a growth does not end')
            time.sleep(0.01)

    def close(self):
        """End everything."""
        for peer in self.peers:
            peer.close()
        for process in (self.agent, self.controller):
            if process and process.poll() is None:
                self.kill(process)
        self.log.close()
        # a provider outlives the controller that started it, and writes here
        end = time.monotonic() + WAIT_S
        while self.dir.exists():
            shutil.rmtree(self.dir, ignore_errors=True)
            if time.monotonic() > end:
                raise AssertionError(f'{self.dir} cannot be removed')


# An exec provider: keeps a size in a file, counts, and does what it is told
PROVIDER = '''#!/usr/bin/env python3
import json, os, sys, time
ask = json.load(sys.stdin)
base = ask['resource']
def read(name, default):
    try:
        return open(base + name).read().strip()
    except FileNotFoundError:
        return default
time.sleep(float(read('.delay', '0')))
mode = read('.mode', 'ok')
size = int(read('.size', '1000000'))
if mode == 'fail':
    sys.exit('no storage today')
if mode == 'garbage':
    print('{"size": "large"}')
    sys.exit(0)
if ask['op'] == 'grow':
    with open(base + '.log', 'a') as log:
        log.write(json.dumps(ask) + '\\\\n')
    if mode != 'lie':
        size = max(size, ask['target'])
        with open(base + '.new', 'w') as new:
            new.write(str(size))
        os.rename(base + '.new', base + '.size')
print(json.dumps({'size': {'zero': 0, 'negative': -5}.get(mode, size)}))
'''


def write_provider(folder):
    """Write the provider's program."""
    path = Path(folder, 'provider')
    path.write_text(PROVIDER.replace('\\\\n', '\\n'))
    path.chmod(0o755)
    return path
