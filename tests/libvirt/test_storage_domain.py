# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt domain whose storage runs out and grows."""
import json
import os
import random
import signal
import socket
import subprocess
import time
import unittest
from pathlib import Path

from libvirtd import LibvirtTest
from hotpath_paths import qemu_binary
from storage_daemons import Daemons, daemon_binary
from storage_vm import MIB, Loop, Tmpfs, make_image, need_root
from test_storage_growth import (SCRIPT, START, Killer, GUEST_MIB, policy,
                                 wanted_sum)

SETTLE_S = 0.5
TMPFS_TESTS = 5


def pid_of(name):
    """The process of a domain."""
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if (line.startswith(bytes(qemu_binary()) + b'\0') and
                f'\0guest={name},'.encode() in line):
            return int(path.parent.name)
    raise AssertionError(f'{name} has no process')


def need_libvirt_agent():
    """Skip if the agent was built without libvirt."""
    said = subprocess.run(
        [daemon_binary('qemu-storage-agent'), '-L', 'none:///', '-C', 'none'],
        text=True, timeout=20, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    if 'built without libvirt' in said:
        raise unittest.SkipTest(said.strip())


class StorageDomain(LibvirtTest):

    @classmethod
    def setUpClass(cls):
        need_root()
        need_libvirt_agent()
        # libvirtd has a mount namespace of its own, and sees what is mounted
        # before it starts
        cls.mounted = []
        for _ in range(TMPFS_TESTS):
            cls.mounted.append(Tmpfs(START))
            cls.addClassCleanup(cls.mounted[-1].close)
        super().setUpClass()

    def make(self, kind, held):
        if kind is Tmpfs:
            self.storage = self.mounted.pop()
        else:
            self.storage = kind(START)
            self.addCleanup(self.storage.close)
        make_image(self.storage)
        self.daemons = Daemons([policy(self.storage, chunk=MIB,
                                       vm='hotpath-*')])
        self.addCleanup(self.daemons.close)

        def edit(text):
            if kind is Loop:
                text = text.replace("disk type='file'", "disk type='block'")
                text = text.replace("source file='@DISK@'",
                                    "source dev='@DISK@'")
            return text.replace('@DISK@', str(self.storage.path)).replace(
                '@POLICY@', 'hold' if held else 'stop')
        return self.domain('storage-growth', SCRIPT, edit=edit)

    def follow(self):
        """Start a controller, and an agent that follows libvirt."""
        self.daemons.start_controller()
        self.start_agent()

    def start_agent(self):
        self.daemons.agent = self.daemons._start(
            daemon_binary('qemu-storage-agent'), '-L', self.daemon.uri, '-C',
            f'unix:{self.daemons.socket}')

    def check(self, domain):
        results = domain.wait(lambda r: 'sum' in r or 'DONE' in r, 'sum', 240)
        self.assertIn('sum', results)
        self.assertEqual(results['sum'].split()[0], wanted_sum())
        growths = self.daemons.growths()
        self.assertGreater(len(growths), GUEST_MIB // 2)
        self.assertEqual(len({g['key'] for g in growths}), len(growths))
        self.assertEqual({g['vm'] for g in growths}, {domain.name})
        print(f'{len(growths)} growths')

    def run_domain(self, kind, held):
        domain = self.make(kind, held)
        self.follow()
        domain.start()
        self.check(domain)

    def test_tmpfs_stop(self):
        self.run_domain(Tmpfs, False)

    def test_tmpfs_hold(self):
        self.run_domain(Tmpfs, True)

    def test_loop_stop(self):
        self.run_domain(Loop, False)

    def test_loop_hold(self):
        self.run_domain(Loop, True)

    def test_paused_and_resumed(self):
        """libvirt sees the pause and its reason, and the end of it."""
        domain = self.make(Tmpfs, False)
        domain.start()
        end = time.monotonic() + 120
        while domain.state() != 'paused':
            self.assertLess(time.monotonic(), end, domain.state())
            time.sleep(0.2)
        self.assertIn('I/O error', self.daemon.virsh(
            'domstate', '--reason', domain.name))
        self.assertIn('no space', self.daemon.virsh('domblkerror',
                                                    domain.name))
        request, = self.daemon.qmp(domain.name, 'query-block-space-requests')
        self.assertIn('ua-guarded', request['qom-path'])
        time.sleep(SETTLE_S)
        self.assertEqual(domain.state(), 'paused')
        self.follow()
        self.check(domain)
        self.assertEqual(self.daemon.virsh('domblkerror', domain.name),
                         'No errors found')

    def test_one_hangs(self):
        """A QEMU that does not answer keeps no other from storage."""
        hung = self.domain('basic', 'while :; do usleep 300000; done')
        domain = self.make(Tmpfs, False)
        hung.start()
        pid = pid_of(hung.name)
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(os.kill, pid, signal.SIGCONT)
        self.follow()
        domain.start()
        self.check(domain)
        self.assertIn('(stopped)', Path(f'/proc/{pid}/status').read_text())

    def test_one_has_many_answers_and_hangs(self):
        """... nor do the answers that it does not take."""
        other = self.domain('basic', 'while :; do usleep 300000; done')
        other.start()
        hung = self.make(Loop, False)
        hung.start()
        hung.wait(lambda _: hung.state() == 'paused', 'it is paused')
        start = Path(self.daemons.log.name).stat().st_size
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(60)
            listener.bind(str(self.daemons.socket))
            listener.listen(1)
            self.start_agent()
            conn, _ = listener.accept()
        with conn, conn.makefile('rwb', 0) as file:
            request = {}
            while request.get('vm') != hung.name:
                request = json.loads(file.readline())
            pid = pid_of(hung.name)
            os.kill(pid, signal.SIGSTOP)
            self.addCleanup(os.kill, pid, signal.SIGCONT)
            file.write(json.dumps({
                'type': 'answer', 'result': 'denied',
                **{key: request[key] for key in ('vm', 'instance', 'id',
                                                 'attempt')}
            }).encode().join([b'', *[b'\n'] * 40]))
            self.daemon.virsh('destroy', other.name)
            self.wait_said(f'{other.name}: is off', start)
            # libvirt gives up one that waits for another after 30 s
            said = b''
            try:
                while True:
                    said += conn.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            self.assertNotIn(b'"outcome"', said)

    def wait_said(self, text, start):
        """Wait until the daemons' log has a text behind a position."""
        log = Path(self.daemons.log.name)
        end = time.monotonic() + 60
        while text.encode() not in log.read_bytes()[start:]:
            self.assertLess(time.monotonic(), end, f'nobody says "{text}"')
            time.sleep(0.1)

    def test_off_and_on(self):
        """A domain that is off is forgotten; it is served when on again."""
        domain = self.make(Loop, True)
        start = Path(self.daemons.log.name).stat().st_size
        self.follow()
        domain.start()
        self.wait_said(' has grown from ', start)
        self.daemon.virsh('destroy', domain.name)
        self.wait_said(f'{domain.name}: is off', start)
        before = len(self.daemons.growths())
        domain.start()
        self.check(domain)
        self.assertGreater(len(self.daemons.growths()), before)

    def test_killed(self):
        """Kill -9 of the agent and the controller all the time."""
        domain = self.make(Tmpfs, True)
        self.follow()
        self.daemons.start_agent = self.start_agent
        killer = Killer(self.daemons, random.randrange(1 << 32))
        domain.start()
        killer.start()
        try:
            self.check(domain)
        finally:
            killer.end()
        print(f'{killer.kills} times kill -9')


if __name__ == '__main__':
    unittest.main()
