# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-storage-controller by its protocol, without a virtual machine."""
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest
from pathlib import Path

from storage_daemons import WAIT_S, Daemons, daemon_binary, write_provider
from storage_vm import KIB, Loop, Tmpfs, need_root, run

MB = 1000000
TEN = 10
PROGRAMS = 32                   # that the controller runs at a time
POOL = 8                        # of these for one pool


def is_gone(pid):
    """Whether a process has ended; it may still have to be waited for."""
    try:
        return ') Z ' in Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return True


class DaemonTest(unittest.TestCase):

    def setUp(self):
        daemon_binary('qemu-storage-controller')
        self.daemons = Daemons([])
        self.addCleanup(self.daemons.close)
        self.base = str(self.daemons.dir / 'pool')
        program = str(write_provider(self.daemons.dir))
        self.policy = {'provider': 'exec', 'command': [program],
                       'chunk': MB, 'align': 512, 'max': 20 * MB,
                       'timeout-ms': 3000}
        self.daemons.configure([self.policy])
        self.next_id = 0

    def set(self, name, value):
        Path(f'{self.base}.{name}').write_text(str(value))

    def size(self):
        path = Path(f'{self.base}.size')
        return int(path.read_text()) if path.exists() else MB

    def calls(self):
        path = Path(f'{self.base}.log')
        return ([json.loads(line) for line in path.read_text().splitlines()]
                if path.exists() else [])

    def request(self, number=None, attempt=1, **more):
        if number is None:
            self.next_id += 1
            number = self.next_id
        return {'type': 'request', 'vm': 'vm', 'path': self.base,
                'instance': 'i', 'id': number, 'attempt': attempt,
                'needed': 65536, 'rate': 0, 'cause': 'write', **more}


class Controller(DaemonTest):

    def test_grow(self):
        self.daemons.start_controller()
        peer = self.daemons.connect()
        answer = peer.ask(**self.request())
        self.assertEqual((answer['type'], answer['result'], answer['id']),
                         ('answer', 'grown', 1))
        grown = self.size()
        self.assertGreaterEqual(grown, 2 * MB)
        self.assertLess(grown, 2 * MB + 512)
        # the same again is answered, and not served
        self.assertEqual(peer.ask(**self.request(1))['result'], 'grown')
        self.assertEqual(self.size(), grown)
        self.assertEqual(len(self.calls()), 1)
        # another attempt is another growth
        self.assertEqual(peer.ask(**self.request(1, 2))['result'], 'grown')
        self.assertGreaterEqual(self.size(), 3 * MB)

    def test_many_at_once(self):
        """One growth at a time; the same question many times is one."""
        self.set('delay', 0.05)
        self.daemons.configure([{**self.policy, 'resource': self.base}])
        self.daemons.start_controller()
        peers = [self.daemons.connect() for _ in range(4)]
        for number in range(1, 4):
            for peer in peers:
                peer.send(**self.request(number, path=f'/disk{number}',
                                         needed=600000))
        # the answer is for all that asked
        for peer in peers:
            answers = [peer.receive() for _ in range(3)]
            self.assertEqual({a['id'] for a in answers}, {1, 2, 3})
            self.assertEqual({a['result'] for a in answers}, {'grown'})
            self.assertTrue(peer.silent(0.05))
        targets = [call['target'] for call in self.calls()]
        self.assertEqual(len(targets), 3)
        self.assertEqual(targets, sorted(set(targets)))
        growths = self.daemons.growths()
        for before, after in zip(growths, growths[1:]):
            self.assertEqual(before['target'], after['from'])

    def test_pool(self):
        """Disks of one pool that is full: it grows once for all of them."""
        self.set('delay', 0.1)
        self.daemons.configure([{**self.policy, 'resource': self.base}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for number in range(1, 5):
            peer.send(**self.request(1, path=f'/disk{number}',
                                     instance=f'i{number}', vm=f'v{number}'))
        self.assertEqual({peer.receive()['result'] for _ in range(4)},
                         {'grown'})
        self.assertEqual(len(self.calls()), 1)
        # all of that is written down, and answered again
        self.daemons.kill(self.daemons.controller)
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for number in range(1, 5):
            self.assertEqual(peer.ask(**self.request(
                1, path=f'/disk{number}', instance=f'i{number}'))['result'],
                'grown')
        self.assertEqual(len(self.calls()), 1)
        # what the others leave is not enough for one more
        for number in range(5, 8):
            peer.send(**self.request(1, path=f'/disk{number}', needed=MB // 2,
                                     instance=f'i{number}'))
        self.assertEqual({peer.receive()['result'] for _ in range(3)},
                         {'grown'})
        self.assertEqual(len(self.calls()), 3)

    def test_same_disk(self):
        """Two instances of one disk need the same storage, not twice of it."""
        self.set('delay', 0.1)
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for name in 'ij':
            peer.send(**self.request(1, instance=name, needed=3 * MB))
        self.assertEqual({peer.receive()['result'] for _ in range(2)},
                         {'grown'})
        self.assertEqual(len(self.calls()), 1)
        # asked for before that ended, said after it
        self.assertEqual(peer.ask(**self.request(
            1, instance='k', **{'age-ms': 60000}))['result'], 'grown')
        self.assertEqual(len(self.calls()), 1)
        # asked for again, or anew: it was not enough
        self.assertEqual(peer.ask(**self.request(1, 2))['result'], 'grown')
        self.assertEqual(peer.ask(**self.request(1, instance='l'))['result'],
                         'grown')
        self.assertEqual(len(self.calls()), 3)
        # and by hand it is what is wanted
        self.assertEqual(self.daemons.ctl('grow', 'vm', self.base)[0], 0)
        self.assertEqual(len(self.calls()), 4)

    def test_two_agents(self):
        """One that asked and is gone takes no answer from the other."""
        self.set('delay', 0.2)
        self.daemons.start_controller()
        stays, goes = self.daemons.connect(), self.daemons.connect()
        stays.send(**self.request(1))
        goes.send(**self.request(1))
        self.daemons.wait_listed('"i/1/1"')
        goes.close()
        self.assertEqual(stays.receive()['result'], 'grown')
        self.assertEqual(len(self.calls()), 1)

    def flood(self, connect, count):
        """Connect often, and say nothing."""
        for _ in range(count):
            sock = connect()
            self.addCleanup(sock.close)

    def connect_raw(self):
        """Connect; there may be no room in the queue at the moment."""
        end = time.monotonic() + WAIT_S
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(WAIT_S)
            try:
                sock.connect(str(self.daemons.socket))
                return sock
            except BlockingIOError:
                sock.close()
                self.assertLess(time.monotonic(), end, 'it accepts nothing')
                time.sleep(0.01)

    def wait_few_descriptors(self, most):
        """Those of connections that are closed go at once, or nearly so."""
        end = time.monotonic() + WAIT_S
        while self.daemons.descriptors() > most:
            self.assertLess(time.monotonic(), end, 'connections stay')
            time.sleep(0.01)

    def limit_files(self, number):
        """... of the test itself, which has the other ends."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < number:
            self.skipTest(f'{hard} files may be open, not {number}')
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE,
                        (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))

    def test_flood(self):
        """Many that connect and say nothing do not keep an agent out."""
        self.limit_files(1500)
        self.daemons.configure([self.policy], connections=20, hello_ms=600000)
        self.daemons.start_controller()
        resource.prlimit(self.daemons.controller.pid, resource.RLIMIT_NOFILE,
                         (600, 600))
        log = Path(self.daemons.log.name)
        start = log.stat().st_size
        spoke = self.daemons.connect()
        self.assertEqual(spoke.ask(**self.request())['result'], 'grown')
        self.flood(self.connect_raw, 1000)
        peer = self.daemons.connect()
        self.assertEqual(peer.ask(**self.request())['result'], 'grown')
        # one that has said something is not sent away for those
        self.assertEqual(spoke.ask(**self.request())['result'], 'grown')
        self.wait_few_descriptors(60)
        with open(log, 'rb') as file:
            file.seek(start)
            told = file.read().count(b'connections without a message')
        self.assertIn(told, (1, 2, 3))

    def test_all_have_spoken(self):
        """Then the next has to go, until there is room."""
        # one is that of start_controller()
        self.daemons.configure([self.policy], connections=4)
        self.daemons.start_controller()
        peers = [self.daemons.connect() for _ in range(3)]
        for peer in peers:
            peer.send(type='hello')
            self.assertEqual(peer.ask(type='history', limit=0)['type'],
                             'reply')
        refused = self.daemons.connect()
        self.assertIsNone(refused.receive())
        self.assertEqual(peers[0].ask(**self.request())['result'], 'grown')
        peers[1].close()
        end = time.monotonic() + WAIT_S
        while True:
            try:
                if self.daemons.connect().ask(type='history', limit=0):
                    break
            except OSError:
                pass                # it was closed before it was written to
            self.assertLess(time.monotonic(), end, 'there is no room')

    def test_silent(self):
        """Who says nothing, or never ends, goes; an agent need not talk."""
        self.daemons.configure([self.policy], hello_ms=300)
        self.daemons.start_controller()
        agent, silent, slow = (self.daemons.connect() for _ in range(3))
        agent.send(type='hello')
        slow.file.write(b'{"type": ')
        slow.file.flush()
        self.assertIsNone(silent.receive())
        self.assertIsNone(slow.receive())
        self.assertTrue(agent.silent(1))
        self.assertEqual(agent.ask(**self.request())['result'], 'grown')

    def test_flood_tls(self):
        """Neither do those that begin no handshake, or do not end one."""
        self.daemons.configure([self.policy], connections=20, hello_ms=2000)
        ctl, port = self.start_tls()
        before = self.daemons.descriptors()

        def connect():
            return socket.create_connection(('127.0.0.1', port), WAIT_S)

        def begin():
            sock = connect()
            # a record of 512 bytes begins, with a hello that is longer
            sock.sendall(bytes.fromhex('160301020001000400'))
            return sock
        for how, count in ((connect, 200), (begin, 15)):
            self.flood(how, count)
            end = time.monotonic() + WAIT_S
            while ctl('ca', 'client')[0]:
                self.assertLess(time.monotonic(), end, 'it is kept out')
        self.wait_few_descriptors(before + 5)
        # and such a one is told by the end of its connection
        with connect() as sock:
            self.assertEqual(sock.recv(1), b'')

    def test_too_few_files(self):
        """A number of connections that cannot be is refused."""
        self.daemons.configure([self.policy], connections=1000)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard < 1000:
            self.skipTest(f'only {hard} files may be open')
        done = subprocess.run(
            ['prlimit', '--nofile=600:600',
             daemon_binary('qemu-storage-controller'), '-l',
             f'unix:{self.daemons.socket}', '-c', self.daemons.config, '-j',
             self.daemons.journal], text=True, timeout=20,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn("'connections' is 1000, but may be 88", done.stderr)

    def test_own_place(self):
        """A machine that asks without end leaves room for others."""
        self.daemons.start_controller()
        peer = self.daemons.connect()
        self.assertEqual(self.daemons.ctl('pause', 'vm')[0], 0)
        for number in range(1, 257):
            peer.send(**self.request(number))
        answer = peer.ask(**self.request(257))
        self.assertEqual((answer['type'], answer['reason']),
                         ('error', 'too many requests'))
        self.assertEqual(self.daemons.ctl('grow', 'vm', self.base)[0], 1)
        listed = self.daemons.ctl('list')
        self.assertEqual((listed[0], listed[1].count('"paused"')), (0, 256))
        answer = peer.ask(**self.request(1, vm='other', instance='other'))
        self.assertEqual(answer['result'], 'grown')

    def file_policy(self, folder):
        self.daemons.configure([{'provider': 'file', 'path': f'{folder}/*',
                                 'chunk': MB, 'max': 20 * MB}])
        self.daemons.start_controller()
        return self.daemons.connect()

    def test_paths(self):
        """A machine does not get at what its policy does not cover."""
        allowed = self.daemons.dir / 'allowed'
        other = self.daemons.dir / 'other'
        allowed.mkdir()
        other.mkdir()
        secret = other / 'secret'
        secret.write_bytes(b'data')
        (allowed / 'file').symlink_to(secret)
        (allowed / 'folder').symlink_to(other)
        os.mkfifo(allowed / 'fifo')
        peer = self.file_policy(allowed)
        for path in (f'{allowed}/../other/secret', f'{allowed}/./x',
                     f'{allowed}//x', f'{allowed}/'):
            self.assertIn('absolute', peer.ask(**self.request(path=path))
                          ['reason'])
        self.assertEqual(peer.ask(**self.request(path=str(secret)))['reason'],
                         'no policy matches')
        for name, why in (('file', 'cannot be opened'),
                          ('folder/secret', 'does not cover'),
                          ('folder', 'cannot be opened'),
                          ('fifo', 'it is no file')):
            peer.send(**self.request(path=f'{allowed}/{name}'))
            self.daemons.wait_listed(why)
        self.assertTrue(peer.silent())
        self.assertEqual(secret.read_bytes(), b'data')
        (allowed / 'mine').write_bytes(b'data')
        answer = peer.ask(**self.request(path=f'{allowed}/mine'))
        self.assertEqual(answer['result'], 'grown')

    def test_file_behind_loop(self):
        """It is the device's own, not one that has its name."""
        need_root()
        disk = Loop(1 << 20)
        self.addCleanup(disk.close)
        fake = disk.dir / 'backing (deleted)'
        fake.write_bytes(b'data')
        self.addCleanup(fake.unlink, missing_ok=True)
        self.daemons.configure([{'provider': 'loop', 'chunk': MB,
                                 'max': 20 * MB}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        # the file itself is kept by its other name
        kept = disk.dir / 'kept'
        kept.hardlink_to(disk.file)
        disk.file.unlink()
        peer.send(**self.request(path=disk.path))
        self.daemons.wait_listed('it is not the file of this device')
        self.assertEqual(fake.read_bytes(), b'data')
        kept.rename(disk.file)
        self.assertEqual(kept.exists(), False)

    def test_tmpfs(self):
        """Its size changes, and nothing else; what is none is refused."""
        need_root()
        disk = Tmpfs(64 * KIB)
        self.addCleanup(disk.close)
        subprocess.run(['mount', '-o', 'remount,noexec,nosuid,mode=711',
                        disk.dir], check=True, timeout=30)

        def options():
            line, = [x for x in Path('/proc/self/mountinfo').read_text()
                     .splitlines() if f' {disk.dir} ' in x]
            return re.sub(r'size=\w+', '', line)
        before = options()
        self.assertIn('noexec', before)
        self.daemons.configure([{'provider': 'tmpfs', 'chunk': MB,
                                 'align': 4096, 'max': 20 * MB}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        answer = peer.ask(**self.request(path=f'{disk.dir}/disk'))
        self.assertEqual(answer['result'], 'grown')
        status = os.statvfs(disk.dir)
        self.assertGreaterEqual(status.f_blocks * status.f_frsize, MB)
        self.assertEqual(options(), before)
        link = self.daemons.dir / 'link'
        link.symlink_to(disk.dir)
        for path, why in ((f'{link}/disk', 'does not cover'),
                          ('/proc/self/disk', 'does not cover'),
                          ('/sys/disk', 'it is no tmpfs')):
            peer.send(**self.request(path=path))
            self.daemons.wait_listed(why)

    def test_names_in_the_log(self):
        """What is said looks like no line of the log."""
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for name in ('vm', 'path', 'instance'):
            answer = peer.ask(**self.request(**{name: '/a\nb'}))
            self.assertEqual(answer['type'], 'error')

    def refused(self, why):
        done = subprocess.run(
            [daemon_binary('qemu-storage-controller'), '-l',
             f'unix:{self.daemons.socket}', '-c', self.daemons.config, '-j',
             self.daemons.journal], text=True, timeout=20,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn(why, done.stderr)

    def test_listens_in_no_file(self):
        """A file that is in the way of the socket is left alone."""
        self.daemons.socket.write_text('text')
        self.refused('Address already in use')
        self.assertEqual(self.daemons.socket.read_text(), 'text')

    def test_files_of_others(self):
        """Who can write to them could say what is run and what was done."""
        for mode in (0o664, 0o646):
            self.daemons.config.chmod(mode)
            self.refused('nobody else may be able to write')
        if not os.geteuid():
            self.daemons.config.chmod(0o600)
            os.chown(self.daemons.config, 1, -1)
            self.refused('must belong to root')
            os.chown(self.daemons.config, 0, -1)
        self.daemons.config.chmod(0o644)
        self.daemons.journal.write_bytes(b'')
        self.daemons.journal.chmod(0o622)
        self.refused('others may write')

    def test_cap(self):
        self.set('size', 19 * MB + 500000)
        self.daemons.start_controller()
        peer = self.daemons.connect()
        self.assertEqual(peer.ask(**self.request())['result'], 'grown')
        self.assertLessEqual(self.size(), 20 * MB)
        answer = peer.ask(**self.request())
        self.assertEqual((answer['result'], answer['reason']),
                         ('denied', 'the maximum is reached'))
        self.assertEqual(peer.ask(**self.request(self.next_id))['result'],
                         'denied')

    def test_how_much(self):
        """Chunk, percent, rate, need, alignment; nothing overflows."""
        cases = (       # policy, size before, request, growth
            ({'chunk': MB}, 5 * MB, {}, MB),
            ({'chunk': MB, 'percent': 50}, 5 * MB, {}, 5 * MB // 2),
            ({'chunk': 1, 'percent': 0}, 5 * MB, {'needed': 3 * MB},
             3 * MB + 128 * 1024),
            ({'chunk': MB, 'lead-ms': 2000}, 5 * MB, {'rate': MB}, 2 * MB),
            # a rate is a guess: four times the chunk at most
            ({'chunk': MB, 'lead-ms': 600000}, 5 * MB, {'rate': 1 << 62},
             4 * MB),
            ({'chunk': MB, 'max': 1 << 60}, 1 << 62, {}, None),
            ({'chunk': MB}, 5 * MB, {'needed': (1 << 63) - 1}, None),
            ({'chunk': 1 << 60, 'max': 1 << 60}, 5 * MB, {},
             (1 << 60) - 5 * MB),
        )
        for policy, size, request, growth in cases:
            with self.subTest(policy=policy, size=size, request=request):
                self.daemons.configure([{**self.policy, 'percent': 0,
                                         **policy}])
                self.set('size', size)
                self.daemons.start_controller()
                answer = self.daemons.connect().ask(**self.request(**request))
                if growth is None:
                    self.assertEqual(answer['result'], 'denied')
                    self.assertEqual(self.size(), size)
                else:
                    self.assertEqual(answer['result'], 'grown')
                    self.assertLess(abs(self.size() - size - growth), 512)
                    self.daemons.wait_ended()
                self.daemons.kill(self.daemons.controller)

    def test_no_policy(self):
        self.daemons.configure([{**self.policy, 'vm': 'other-*'}])
        self.daemons.start_controller()
        answer = self.daemons.connect().ask(**self.request())
        self.assertEqual((answer['result'], answer['reason']),
                         ('denied', 'no policy matches'))

    def test_in_vain(self):
        """Storage that grows where the VM does not see it is not eaten up."""
        self.daemons.start_controller()
        peer = self.daemons.connect()
        results = [peer.ask(**self.request(1, attempt))['result']
                   for attempt in range(1, 9)]
        self.assertEqual(results, ['grown'] * 5 + ['denied'] * 3)

    def test_continued_by_the_user(self):
        """Attempts that the user of a VM makes are not held against it."""
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for attempt in (7, 12, 1000):
            self.assertEqual(peer.ask(**self.request(1, attempt))['result'],
                             'grown')
        # or what is asked next may be answered by the end of the last one
        self.daemons.wait_ended()
        self.daemons.kill(self.daemons.controller)
        self.daemons.start_controller()
        peer = self.daemons.connect()
        results = [peer.ask(**self.request(1, attempt))['result']
                   for attempt in range(1001, 1004)]
        self.assertEqual(results, ['grown'] * 2 + ['denied'])
        # another request has nothing to do with it
        self.assertEqual(peer.ask(**self.request(10, 1000))['result'],
                         'grown')

    def test_grown_by_others(self):
        """Nor is it what was answered by what another one had asked for."""
        self.daemons.configure([{**self.policy, 'attempts': 2}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        self.assertEqual(peer.ask(**self.request(1, instance='other'))
                         ['result'], 'grown')
        results = [peer.ask(**self.request(
            1, 1, **{'age-ms': 60000}))['result']]
        self.assertEqual(len(self.calls()), 1)
        results.append(peer.ask(**self.request(1, 2))['result'])
        self.daemons.wait_ended()
        self.daemons.kill(self.daemons.controller)
        self.daemons.start_controller()
        peer = self.daemons.connect()
        results += [peer.ask(**self.request(1, attempt))['result']
                    for attempt in (3, 4)]
        self.assertEqual(results, ['grown'] * 3 + ['denied'])
        self.assertEqual(len(self.calls()), 3)

    def test_same_path_elsewhere(self):
        """Paths of two hosts, which two programs serve, are two things."""
        self.daemons.configure([
            {**self.policy, 'vm': '*@one'},
            {**self.policy, 'vm': '*@two',
             'command': self.policy['command'] + ['two']}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for number, host in enumerate(('one', 'two'), 1):
            self.assertEqual(peer.ask(**self.request(
                number, vm=f'vm@{host}', **{'age-ms': 60000}))['result'],
                'grown')
            self.assertEqual(len(self.calls()), number)

    def test_one_program_for_hosts(self):
        """A program is told which machine asks, for the size as well."""
        program = self.daemons.dir / 'hosts'
        program.write_text('#!/usr/bin/env python3\n'
                           'import json, sys\n'
                           'ask = json.load(sys.stdin)\n'
                           f'name = "{self.daemons.dir}/" + '
                           'ask["vm"].split("@")[1]\n'
                           'size = ask.get("target")\n'
                           'if size:\n'
                           '    open(name, "w").write(str(size))\n'
                           'try:\n'
                           '    size = int(open(name).read())\n'
                           'except FileNotFoundError:\n'
                           '    size = 1000000\n'
                           'print(json.dumps({"size": size}))\n')
        program.chmod(0o755)
        self.daemons.configure([{**self.policy, 'command': [str(program)]}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for number, host in enumerate(('one', 'two'), 1):
            self.assertEqual(peer.ask(**self.request(
                number, vm=f'vm@{host}', **{'age-ms': 60000}))['result'],
                'grown')
            self.assertGreaterEqual(
                int((self.daemons.dir / host).read_text()), 2 * MB)

    def start_slow(self, pools):
        """Start a controller whose programs wait for a gate.

        Requests of vmN are for the pool N.  Returns the program, the gate and
        a function that tells how many were started.
        """
        gate, log = self.daemons.dir / 'gate', self.daemons.dir / 'log'
        program = self.daemons.dir / 'slow'
        program.write_text(f'#!/bin/sh\necho >> {log}\n'
                           f'while [ -e {gate} ]; do sleep 0.05; done\n'
                           'echo \'{"size": 2000000}\'\n')
        program.chmod(0o755)
        gate.touch()
        self.daemons.configure([
            {**self.policy, 'vm': f'vm{pool}', 'timeout-ms': 60000,
             'command': [str(program), str(pool)]}
            for pool in range(pools)] + [{**self.policy, 'vm': 'other'}])
        self.daemons.start_controller()

        def started():
            return len(log.read_text()) if log.exists() else 0
        return program, gate, started

    def wait_started(self, started, number):
        end = time.monotonic() + WAIT_S
        while started() < number:
            self.assertLess(time.monotonic(), end, f'{started()} were started')
            time.sleep(0.05)

    def send_many(self, peer, number, pools):
        for i in range(1, number + 1):
            peer.send(**self.request(i, path=f'/disk{i}', needed=1,
                                     vm=f'vm{i % pools}'))

    def test_programs_are_bounded(self):
        """Many that ask at once do not start as many programs."""
        program, gate, started = self.start_slow(5)
        peer = self.daemons.connect()
        self.send_many(peer, PROGRAMS + 8, 5)
        self.wait_started(started, PROGRAMS)
        self.assertTrue(peer.silent(1))
        self.assertEqual(started(), PROGRAMS)
        # the others are next, also when they fail to start
        program.chmod(0o644)
        gate.unlink()
        self.daemons.wait_listed('Permission denied')
        program.chmod(0o755)
        # and then each one is told to grow, at least once
        self.wait_started(started, 2 * PROGRAMS + 8)

    def test_one_pool_is_dead(self):
        """... and leave some for other pools."""
        _, gate, started = self.start_slow(1)
        peer = self.daemons.connect()
        self.send_many(peer, PROGRAMS + 8, 1)
        self.wait_started(started, POOL)
        answer = self.daemons.connect().ask(**self.request(1000, vm='other'))
        self.assertEqual(answer['result'], 'grown')
        self.assertEqual(started(), POOL)
        # all of that pool are served when it is alive
        gate.unlink()
        self.wait_started(started, 2 * PROGRAMS + 16)

    def test_no_input_for_a_program(self):
        # the log is no file here, which the limit would be for as well
        self.daemons.log.close()
        self.daemons.log = open(os.devnull, 'wb')
        self.daemons.start_controller()
        pid = self.daemons.controller.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (TEN, limits[1]))
        peer = self.daemons.connect()
        peer.send(**self.request())
        self.daemons.wait_listed('File too large')
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        self.assertEqual(peer.receive()['result'], 'grown')

    def test_bad_sizes(self):
        for mode in ('zero', 'negative', 'garbage', 'fail', 'lie'):
            with self.subTest(mode=mode):
                self.set('mode', mode)
                self.daemons.start_controller()
                peer = self.daemons.connect()
                before = self.size()
                peer.send(**self.request())
                if mode == 'zero':
                    answer = peer.receive()
                    self.assertEqual(answer['result'], 'denied')
                    self.assertIn('not plausible', answer['reason'])
                else:
                    # it waits, says why, and goes on when that is over
                    self.daemons.wait_listed('error')
                    self.assertTrue(peer.silent())
                    self.assertEqual(self.size(), before)
                    self.set('mode', 'ok')
                    self.assertEqual(peer.receive()['result'], 'grown')
                    self.assertLess(self.size(), before + 2 * MB)
                self.daemons.kill(self.daemons.controller)

    def test_provider_hangs(self):
        self.daemons.configure([{**self.policy, 'timeout-ms': 200}])
        self.set('delay', 60)
        self.daemons.start_controller()
        peer = self.daemons.connect()
        peer.send(**self.request())
        self.daemons.wait_listed('it took too long')
        self.assertTrue(peer.silent())
        self.set('delay', 0)
        self.assertEqual(peer.receive()['result'], 'grown')
        self.assertEqual(len(self.calls()), 1)

    def test_provider_does_not_read(self):
        """... what it is told: what it says, and how it ends, is what counts.
        """
        script = self.daemons.dir / 'script'
        self.daemons.configure([{**self.policy, 'command': [str(script)]}])
        # a pipe would break, sooner or later
        script.write_text(
            '#!/bin/sh\n[ ! -p /dev/stdin ] || { echo A pipe >&2; exit 1; }\n'
            f'exec <&-\necho \'{{"size": 500}}\'\n[ ! -e {self.base}.fail ]'
            ' || { echo No disks today >&2; exit 3; }\n')
        script.chmod(0o755)
        self.set('fail', '')
        self.daemons.start_controller()
        peer = self.daemons.connect()
        peer.send(**self.request())
        self.daemons.wait_listed('No disks today')
        self.daemons.kill(self.daemons.controller)
        Path(f'{self.base}.fail').unlink()
        # it tells a size that is too small for a growth
        self.daemons.start_controller()
        self.daemons.connect().send(**self.request())
        self.daemons.wait_listed('but the size is 500')

    def test_disk_hangs(self):
        """A system call that waits keeps nobody else waiting."""
        need_root()
        disk = Loop(16 << 20)
        self.addCleanup(disk.close)
        mount = self.daemons.dir / 'mount'
        mount.mkdir()
        for tool in ('mkfs.ext4', 'fsfreeze'):
            if not shutil.which(tool):
                self.skipTest(f'{tool} not found')
        run('mkfs.ext4', '-q', disk.path)
        run('mount', disk.path, mount)
        self.addCleanup(run, 'umount', mount)
        (mount / 'file').write_bytes(b'data')
        self.daemons.configure([
            {'provider': 'file', 'path': f'{mount}/*', 'chunk': MB,
             'max': 20 * MB}, self.policy])
        run('fsfreeze', '-f', mount)
        frozen = [True]

        def thaw():
            if frozen:
                frozen.clear()
                run('fsfreeze', '-u', mount)
        self.addCleanup(thaw)
        self.daemons.start_controller()
        waits, peer = self.daemons.connect(), self.daemons.connect()
        waits.send(**self.request(1, path=f'{mount}/file'))
        self.daemons.wait_listed('growing')
        self.assertEqual(peer.ask(**self.request(2))['result'], 'grown')
        self.assertTrue(waits.silent())
        thaw()
        self.assertEqual(waits.receive()['result'], 'grown')
        self.assertGreater((mount / 'file').stat().st_size, MB)

    def test_provider_leaves_children(self):
        """What a late provider has started is killed, or not waited for."""
        for escape in ('', 'setsid '):
            with self.subTest(escape=escape):
                pid = self.daemons.dir / 'pid'
                pid.unlink(missing_ok=True)
                script = self.daemons.dir / 'script'
                script.write_text(
                    f'#!/bin/sh\n[ -e {self.base}.stuck ] || exec '
                    f'{self.policy["command"][0]}\n'
                    f"{escape}sh -c 'echo $$ >{pid}; exec sleep 60' &\n"
                    'wait\nsleep 60\n')
                script.chmod(0o755)
                self.daemons.configure([{**self.policy, 'timeout-ms': 500,
                                         'command': [str(script)]}])
                self.set('stuck', '')
                self.daemons.start_controller()
                peer = self.daemons.connect()
                peer.send(**self.request())
                self.daemons.wait_listed('it took too long')
                child = int(pid.read_text())
                Path(f'{self.base}.stuck').unlink()
                self.assertEqual(peer.receive()['result'], 'grown')
                if escape:
                    os.kill(child, signal.SIGKILL)
                else:
                    self.assertTrue(is_gone(child), 'a child runs on')
                self.daemons.kill(self.daemons.controller)

    def test_denials_are_bounded(self):
        """A machine that asks all the time does not fill the journal."""
        self.daemons.configure([{**self.policy, 'vm': 'other'}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for number in range(1, 1501):
            self.assertEqual(peer.ask(**self.request(number))['result'],
                             'denied')
        self.assertEqual(len(self.daemons.growths('deny')), 1000)

    def test_answers_by_others_are_bounded(self):
        """... nor does one whose requests have their answer already."""
        disk = self.daemons.dir / 'disk'
        disk.write_bytes(bytes(KIB))
        self.daemons.configure([{'provider': 'file', 'chunk': MB,
                                 'max': 20 * MB}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for number in range(1, 1501):
            self.assertEqual(peer.ask(**self.request(
                number, path=str(disk),
                **{'age-ms': 24 * 60 * 60 * 1000}))['result'], 'grown')
        grown, *others = self.daemons.growths()
        self.assertEqual(disk.stat().st_size, grown['target'])
        self.assertEqual(len(others), 1000)

    def test_finished_by_its_policy(self):
        """What had begun is finished, whatever the patterns look like."""
        name = f'{self.base}-of-vm'
        mine = {**self.policy, 'path': name, 'resource': self.base}
        self.daemons.configure([{**mine, 'vm': 'other', 'provider': 'file'},
                                mine])
        self.set('delay', 60)
        self.daemons.start_controller()
        self.set('delay', 0.5)
        self.daemons.connect().send(**self.request(1, path=name))
        self.daemons.wait_listed('growing')
        self.daemons.kill(self.daemons.controller)
        self.set('delay', 0)
        self.daemons.start_controller()
        self.assertEqual(
            self.daemons.connect().ask(**self.request(1, path=name))['result'],
            'grown')
        begun, = self.daemons.growths()
        self.assertEqual(self.size(), begun['target'])

    def test_pause(self):
        self.daemons.start_controller()
        peer = self.daemons.connect()
        self.assertEqual(self.daemons.ctl('pause', 'vm')[0], 0)
        peer.send(**self.request())
        self.assertTrue(peer.silent())
        self.assertIn('"paused"', self.daemons.ctl('list')[1])
        self.assertEqual(self.daemons.ctl('continue', 'vm')[0], 0)
        self.assertEqual(peer.receive()['result'], 'grown')
        self.assertEqual(self.daemons.ctl('continue', 'vm')[0], 1)

    def test_pause_while_it_fails(self):
        """What has not begun waits, and keeps nobody from the resource."""
        self.daemons.configure([{**self.policy, 'resource': self.base}])
        self.set('mode', 'fail')
        self.daemons.start_controller()
        peer = self.daemons.connect()
        peer.send(**self.request(1))
        self.daemons.wait_listed('no storage today')
        peer.send(**self.request(2))        # waits for the first
        self.assertEqual(self.daemons.ctl('pause', 'vm')[0], 0)
        other = self.daemons.connect()
        other.send(**self.request(3, vm='other'))
        self.set('mode', 'ok')
        self.assertEqual(other.receive()['id'], 3)
        self.assertTrue(peer.silent(1))
        listed = self.daemons.ctl('list')[1]
        self.assertEqual(listed.count('"paused"'), 2, listed)
        self.assertEqual(len(self.daemons.growths()), 1)
        self.assertEqual(self.daemons.ctl('continue', 'vm')[0], 0)
        self.assertEqual({peer.receive()['id'], peer.receive()['id']}, {1, 2})
        self.assertEqual(len(self.daemons.growths()), 3)

    def test_pause_after_begin(self):
        """What has begun is finished."""
        self.set('mode', 'lie')
        self.daemons.start_controller()
        peer = self.daemons.connect()
        peer.send(**self.request())
        self.daemons.wait_listed('says that it is done')
        self.assertEqual(self.daemons.ctl('pause', 'vm')[0], 0)
        self.set('mode', 'ok')
        self.assertEqual(peer.receive()['result'], 'grown')

    def test_by_hand(self):
        self.daemons.start_controller()
        self.assertEqual(self.daemons.ctl('grow', 'vm', self.base, 3 * MB),
                         (0, 'grown\n'))
        self.assertGreaterEqual(self.size(), 4 * MB)
        self.assertIn('by-hand', self.daemons.ctl('history')[1])
        self.assertEqual(self.daemons.ctl('grow', 'vm')[0], 1)
        size = self.size()
        for odd in ('10G', '', '0', '-5', '1e6', '99999999999999999999'):
            status, said = self.daemons.ctl('grow', '--', 'vm', self.base, odd)
            self.assertEqual(status, 1, odd)
            self.assertIn('BYTES is a number', said)
        self.assertEqual(self.size(), size)

    def test_killed(self):
        """Kill -9 at any time: each request is served once."""
        seed = random.randrange(1 << 32)
        rand = random.Random(seed)
        print(f'seed {seed}')
        self.daemons.configure([{**self.policy, 'max': 1000 * MB}])
        self.daemons.start_controller()
        for number in range(1, 41):
            peer = self.daemons.connect()
            peer.send(**self.request(number))
            time.sleep(rand.random() * 0.12)
            self.daemons.kill(self.daemons.controller)
            peer.close()
            self.daemons.start_controller()
            peer = self.daemons.connect()
            self.assertEqual(peer.ask(**self.request(number))['result'],
                             'grown')
            peer.close()
        growths = self.daemons.growths()
        self.assertEqual(len(growths), 40)
        self.assertEqual(len({g['key'] for g in growths}), 40)
        for before, after in zip(growths, growths[1:]):
            self.assertEqual(before['target'], after['from'])
        self.assertEqual(self.size(), growths[-1]['target'])

    def test_journal_is_torn(self):
        """Cut somewhere in its last records, it is read."""
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for _ in range(3):
            peer.ask(**self.request())
        self.daemons.kill(self.daemons.controller)
        whole = self.daemons.journal.read_bytes()
        size = self.size()
        start = whole[:-1].rfind(b'\n', 0, whole[:-1].rfind(b'\n')) + 1
        for cut in range(start, len(whole), 7):
            self.daemons.journal.write_bytes(whole[:cut])
            self.set('size', size)
            self.daemons.start_controller()
            self.assertEqual(
                self.daemons.connect().ask(**self.request(1))['result'],
                'grown')
            self.daemons.kill(self.daemons.controller)

    def test_journal_is_damaged(self):
        """... but damage in its middle is not passed over."""
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for _ in range(3):
            peer.ask(**self.request())
        self.daemons.kill(self.daemons.controller)
        data = bytearray(self.daemons.journal.read_bytes())
        data[20] ^= 1
        self.daemons.journal.write_bytes(data)
        done = subprocess.run(
            [daemon_binary('qemu-storage-controller'), '-l',
             f'unix:{self.daemons.socket}', '-c', self.daemons.config, '-j',
             self.daemons.journal], text=True, timeout=20,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn('the record at byte 0 is damaged', done.stderr)

    def test_journal_is_full(self):
        """Nothing grows that cannot be written down."""
        self.daemons.journal.symlink_to('/dev/full')
        done = subprocess.run(
            [daemon_binary('qemu-storage-controller'), '-l',
             f'unix:{self.daemons.socket}', '-c', self.daemons.config, '-j',
             self.daemons.journal], text=True, timeout=20,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.daemons.journal.unlink()

        # a limit on the size of files stands for a full disk
        self.daemons.start_controller()
        pid = self.daemons.controller.pid
        peer = self.daemons.connect()
        self.assertEqual(peer.ask(**self.request())['result'], 'grown')
        length = self.daemons.journal.stat().st_size
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE,
                         (length + TEN, limits[1]))
        size = self.size()
        peer.send(**self.request())
        self.daemons.wait_listed('Journal')
        self.assertTrue(peer.silent())
        self.assertEqual(self.size(), size)
        self.assertEqual(self.daemons.journal.stat().st_size, length)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        self.assertEqual(peer.receive()['result'], 'grown')

    def test_disk_of_journal_is_full(self):
        """... nor when the file system is full; and it goes on by itself."""
        need_root()
        disk = Tmpfs(64 * KIB)
        self.addCleanup(disk.close)
        self.daemons.journal = disk.dir / 'journal'
        self.daemons.configure([{**self.policy, 'max': 10000 * MB}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        ballast = disk.dir / 'ballast'
        with open(ballast, 'wb', 0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        done = 0
        peer.sock.settimeout(1)
        while True:             # until the journal's last page is full
            peer.send(**self.request())
            try:
                self.assertEqual(peer.receive()['result'], 'grown')
            except TimeoutError:
                break
            done += 1
        self.daemons.wait_listed('Journal')
        size = self.size()
        self.assertEqual(len(self.daemons.growths()), done)
        # killed, it still knows what it did, and what it did not
        self.daemons.kill(self.daemons.controller)
        self.daemons.start_controller()
        peer = self.daemons.connect()
        for number in range(1, done + 1):
            self.assertEqual(peer.ask(**self.request(number))['result'],
                             'grown')
        peer.send(**self.request(done + 1))
        self.daemons.wait_listed('Journal')
        self.assertEqual(self.size(), size)
        # nor is there a denial that cannot be written down
        denied = self.daemons.connect()
        denied.send(**self.request(done + 2, attempt=99, path='no/path'))
        self.daemons.wait_listed('/99')
        self.assertTrue(denied.silent(1))
        ballast.unlink()
        self.assertEqual(peer.receive()['result'], 'grown')
        self.assertEqual(denied.receive()['result'], 'denied')
        self.assertEqual(len(self.daemons.growths()), done + 1)

    def test_two_controllers(self):
        """The second one ends, be it an agent that is one, too."""
        self.daemons.start_controller()
        for program, option, value in (
                ('qemu-storage-controller', '-l',
                 f'unix:{self.daemons.dir}/other'),
                ('qemu-storage-agent', '-d', self.daemons.qmp)):
            with self.subTest(program=program):
                done = subprocess.run(
                    [daemon_binary(program), option, value, '-c',
                     self.daemons.config, '-j', self.daemons.journal],
                    text=True, timeout=20, stderr=subprocess.PIPE,
                    stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
                self.assertEqual(done.returncode, 1)
                self.assertIn('it is in use', done.stderr)
        self.assertEqual(self.daemons.connect().ask(
            **self.request())['result'], 'grown')

    def test_bad_configuration(self):
        for text, why in (
                ('{', 'Configuration'),
                ('[]', '{"policies": [...]}'),
                ('{"policies": [{"provider": "tape", "max": 1}]}', "'tape'"),
                ('{"policies": [{"provider": "loop"}]}', "'max' is missing"),
                ('{"policies": [{"provider": "loop", "max": -1}]}',
                 "'max' must be a number from 1"),
                ('{"policies": [{"provider": "loop", "max": 1e30}]}',
                 "'max' must be"),
                ('{"policies": [{"provider": "loop", "max": 9, "chnk": 1}]}',
                 "no member 'chnk'"),
                ('{"policies": [{"provider": "exec", "max": 9, '
                 '"command": ["true"]}]}', 'an absolute path'),
                ('{"policies": [{"provider": "loop", "max": 9, "align": 0}]}',
                 "'align' must be a number from 512")):
            with self.subTest(text=text):
                self.daemons.config.write_text(text)
                done = subprocess.run(
                    [daemon_binary('qemu-storage-controller'), '-l',
                     f'unix:{self.daemons.socket}', '-c', self.daemons.config,
                     '-j', self.daemons.journal], text=True, timeout=20,
                    stderr=subprocess.PIPE, stdout=subprocess.PIPE)
                self.assertEqual(done.returncode, 1)
                self.assertIn(why, done.stderr)

    def stand_in(self, name, text):
        """Put a program in front of the real one, for the controller."""
        folder = self.daemons.dir / 'bin'
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text('#!/bin/sh\n' + text)
        path.chmod(0o755)
        old = os.environ['PATH']
        os.environ['PATH'] = f'{folder}:{old}'
        self.addCleanup(os.environ.__setitem__, 'PATH', old)

    def test_lvm_command(self):
        """What is said to LVM, to a stand-in for it."""
        self.set('size', 5 * MB)
        self.stand_in('lvs', f'echo "$@" >{self.base}.lvs\n'
                      f'echo "  $(cat {self.base}.size)"\n')
        self.stand_in('lvextend', f'echo "$@" >{self.base}.lvextend\n'
                      f'echo "${{2%b}}" >{self.base}.size\n')
        self.daemons.configure([{'provider': 'lvm', 'chunk': MB,
                                 'max': 20 * MB, 'align': 512}])
        self.daemons.start_controller()
        peer = self.daemons.connect()
        answer = peer.ask(**self.request(path='/dev/vg/lv'))
        self.assertEqual(answer['result'], 'grown')
        self.assertGreaterEqual(self.size(), 6 * MB)
        self.assertEqual(Path(f'{self.base}.lvextend').read_text(),
                         f'-L {self.size()}b -- /dev/vg/lv\n')
        self.assertIn('-o lv_size -- /dev/vg/lv',
                      Path(f'{self.base}.lvs').read_text())

    def test_rbd_command(self):
        """What is said to rbd, to a stand-in for it."""
        self.set('size', 5 * MB)
        self.stand_in('rbd', f"""
            if [ "$1" = info ]; then
                echo '{{"name": "i", "size": '$(cat {self.base}.size)'}}'
            else
                echo "$@" >{self.base}.resize
                size=${{4%B}}
                echo $size >{self.base}.size
            fi
            """)
        self.daemons.configure([{'provider': 'rbd', 'resource': 'pool/image',
                                 'chunk': MB, 'max': 20 * MB, 'align': 512}])
        self.daemons.start_controller()
        answer = self.daemons.connect().ask(**self.request(path=''))
        self.assertEqual(answer['result'], 'grown')
        self.assertEqual(Path(f'{self.base}.resize').read_text(),
                         f'resize --no-progress --size {self.size()}B '
                         'pool/image\n')

    def test_file(self):
        path = self.daemons.dir / 'sparse'
        path.write_bytes(b'data')
        self.daemons.configure([{'provider': 'file', 'chunk': MB,
                                 'max': 20 * MB}])
        self.daemons.start_controller()
        answer = self.daemons.connect().ask(**self.request(path=str(path)))
        self.assertEqual(answer['result'], 'grown')
        self.assertEqual(path.stat().st_size, 1 << 20)
        self.assertEqual(path.read_bytes()[:4], b'data')

    def start_tls(self):
        """Start a controller with TLS; return ctl(ca, name), and the port."""
        folder = self.daemons.dir

        def openssl(*words):
            done = subprocess.run(['openssl', *map(str, words)], timeout=60,
                                  stdout=subprocess.PIPE, text=True,
                                  stderr=subprocess.STDOUT, cwd=folder)
            self.assertEqual(done.returncode, 0, done.stdout)

        def certificate(name, ca):
            openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days',
                    '9', '-keyout', f'{ca}.key', '-out', f'{ca}.pem', '-subj',
                    f'/CN={ca}') if not (folder / f'{ca}.pem').exists() \
                else None
            openssl('req', '-newkey', 'rsa:2048', '-nodes', '-keyout',
                    f'{name}.key', '-out', f'{name}.csr', '-subj',
                    f'/CN={name}')
            (folder / 'ext').write_text('subjectAltName=IP:127.0.0.1\n')
            openssl('x509', '-req', '-in', f'{name}.csr', '-CA', f'{ca}.pem',
                    '-CAkey', f'{ca}.key', '-CAcreateserial', '-days', '9',
                    '-out', f'{name}.crt', '-extfile', 'ext')
            (folder / f'{name}.both').write_text(
                (folder / f'{name}.crt').read_text()
                + (folder / f'{name}.key').read_text())

        if not shutil.which('openssl'):
            self.skipTest('openssl not found')
        certificate('server', 'ca')
        certificate('client', 'ca')
        certificate('stranger', 'other')
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        address = f'tls:127.0.0.1:{port}'
        self.daemons.controller = self.daemons._start(
            daemon_binary('qemu-storage-controller'), '-l', address, '-c',
            self.daemons.config, '-j', self.daemons.journal, '--tls-ca',
            folder / 'ca.pem', '--tls-certificate', folder / 'server.both')

        def ctl(ca, name):
            done = subprocess.run(
                [daemon_binary('qemu-storage-ctl'), '-C', address, '--tls-ca',
                 folder / f'{ca}.pem', '--tls-certificate',
                 folder / f'{name}.both', 'grow', 'vm', self.base], text=True,
                timeout=30, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if 'no TLS here' in done.stdout:
                self.skipTest('GLib has no TLS (package glib-networking)')
            return done.returncode, done.stdout

        end = time.monotonic() + WAIT_S
        while ctl('ca', 'client') != (0, 'grown\n'):
            self.assertLess(time.monotonic(), end, ctl('ca', 'client'))
        return ctl, port

    def test_tls(self):
        """With certificates of one CA they talk, else not."""
        ctl, port = self.start_tls()
        self.assertEqual(ctl('ca', 'stranger')[0], 1)
        self.assertEqual(ctl('other', 'client')[0], 1)
        self.assertEqual(ctl('ca', 'client')[0], 0)
        with socket.create_connection(('127.0.0.1', port)) as plain:
            plain.sendall(b'{"type": "history"}\n')
            plain.settimeout(10)
            try:
                self.assertNotIn(b'reply', plain.recv(4096))
            except ConnectionResetError:
                pass

    def test_hostile(self):
        """Whatever a peer sends, others are served."""
        seed = random.randrange(1 << 32)
        rand = random.Random(seed)
        print(f'seed {seed}')
        # one resource, or the provider would write to broken paths
        self.daemons.configure([{**self.policy, 'max': 1 << 50,
                                 'resource': self.base}])
        self.daemons.start_controller()
        good = json.dumps(self.request(99)).encode()
        words = [b'{', b'}', b'[', b']', b'"', b':', b',', b'\\u0000',
                 b'1e999',
                 b'-1', b'null', b'true', b'"type"', b'"request"', b'\xff',
                 b'\0', b'9223372036854775808', b'"id"', b'"list"']
        cases = [b'[' * 100000 + b'\n', b'{"a":' * 50000 + b'\n',
                 b'x' * (2 << 20), b'"' + b'\\u1234' * 100000 + b'"\n',
                 b'{"type":"request"}\n', b'{"type":5}\n', b'[]\n', b'\n\n\n',
                 b'{"type":"history","limit":-1}\n',
                 b'{"type":"history","limit":1e300}\n',
                 b'{"type":"grow","vm":"vm","path":"/p","bytes":-1}\n']
        end = time.monotonic() + float(os.environ.get('FUZZ_SECONDS', '5'))
        count = 0
        while time.monotonic() < end or cases:
            if cases:
                data = cases.pop()
            elif rand.random() < 0.5:
                data = bytearray(good)
                for _ in range(rand.randrange(1, 6)):
                    data[rand.randrange(len(data))] = rand.randrange(256)
                data = bytes(data) + b'\n'
            else:
                data = b''.join(rand.choices(words,
                                             k=rand.randrange(1, 40))) + b'\n'
            peer = self.daemons.connect()
            try:
                peer.sock.sendall(data)
            except OSError:
                pass
            peer.close()
            count += 1
        self.assertIsNone(self.daemons.controller.poll())
        print(f'{count} cases')
        self.assertEqual(
            self.daemons.connect().ask(**self.request(1))['result'], 'grown')


class QmpPeer:
    """What an agent connects to: requests storage, and notes the answers."""

    def __init__(self, path, requests):
        self.requests, self.answers = requests, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            with conn, conn.makefile('rwb', 0) as file:
                try:
                    file.write(b'{"QMP": {"version": {}}}\r\n')
                    for line in file:
                        file.write(json.dumps(self.reply(json.loads(line)))
                                   .encode() + b'\r\n')
                except OSError:
                    pass

    def reply(self, command):
        value = {}
        if command['execute'] == 'query-block-space-requests':
            value = self.requests
        elif command['execute'] == 'block-space-resolve':
            self.answers.append(command['arguments'])
            value = {'outcome': 'grown'}
        return {'return': value, 'id': command['id']}

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Agent(DaemonTest):
    """qemu-storage-agent by QMP, with the real controller."""

    def qmp(self, name, requests):
        peer = QmpPeer(self.daemons.qmp / f'{name}.qmp', requests)
        self.addCleanup(peer.close)
        return peer

    def space_request(self, number=1, **more):
        return {'id': number, 'instance': 'abc', 'node-name': 'n',
                'driver': 'file', 'filename': self.base, 'cause': 'write',
                'state': 'open', 'offset': 0, 'bytes': 512, 'needed': 512,
                'size': 0, 'rate': 0, 'attempt': 1, 'held': 1,
                'stopped': False, 'age-ms': 0, **more}

    def wait_answers(self, peer, wanted):
        end = time.monotonic() + 20
        while peer.answers[:len(wanted)] != wanted:
            self.assertLess(time.monotonic(), end, peer.answers)
            time.sleep(0.02)

    def test_answers(self):
        peer = self.qmp('one', [self.space_request(7)])
        denied = self.qmp('two', [self.space_request(8, state='denied')])
        self.daemons.start_controller()
        self.daemons.start_agent()
        self.wait_answers(peer, [{'id': 7, 'result': 'grown'}])
        # the agent is killed: it is told once more, and nothing grows
        self.daemons.kill(self.daemons.agent)
        self.daemons.start_agent()
        self.wait_answers(peer, [{'id': 7, 'result': 'grown'}] * 2)
        self.assertEqual(len(self.calls()), 1)
        self.assertEqual(denied.answers, [])

    def test_old_answers(self):
        """What answers another machine or an earlier attempt is dropped."""
        machine = self.qmp('one', [self.space_request(7, attempt=2)])
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(self.daemons.socket))
        listener.listen(1)
        listener.settimeout(20)
        self.daemons.start_agent()
        conn, _ = listener.accept()
        with conn, conn.makefile('rwb', 0) as file:
            conn.settimeout(20)
            self.assertEqual(json.loads(file.readline()), {'type': 'hello'})
            asked = json.loads(file.readline())
            self.assertEqual((asked['id'], asked['attempt']), (7, 2))
            answer = {'type': 'answer', 'vm': 'one', 'instance': 'abc',
                      'id': 7, 'attempt': 2, 'result': 'denied'}
            for wrong in ({'attempt': 1}, {'attempt': 3}, {'attempt': 'x'},
                          {'instance': 'other'}, {'vm': 'two'},
                          {'instance': None}, {'result': 5}, {'type': 'x'},
                          {'result': 'grown'}):
                file.write(json.dumps({**answer, **wrong}).encode() + b'\n')
            self.wait_answers(machine, [{'id': 7, 'result': 'grown'}])
        self.assertEqual(len(machine.answers), 1)

    def test_controller_comes_late(self):
        peer = self.qmp('one', [self.space_request(7)])
        self.daemons.start_agent()
        time.sleep(0.5)
        self.daemons.start_controller()
        self.wait_answers(peer, [{'id': 7, 'result': 'grown'}])

    def test_hostile_machines(self):
        """A machine that sends nonsense does not keep others from storage."""
        hostile = [
            b'', b'\n' * 1000, b'{"QMP": 5}\n' * 50, b'[[[[\n', b'\0\n',
            b'{"event": "BLOCK_SPACE_REQUEST"}\n',
            b'{"event": "BLOCK_SPACE_REQUEST", "data": []}\n',
            b'{"event": "BLOCK_SPACE_REQUEST", "data": {"id": "x", "instance"'
            b': 5, "state": "open"}}\n',
            b'{"event": "BLOCK_SPACE_REQUEST", "data": {"id": -1, "instance"'
            b': "a/b", "state": "open", "needed": 1e99}}\n',
            b'{"return": [5, null, "x"], "id": "query"}\n',
            b'{"return": 5, "id": "resolve 1 1"}\n',
            b'{"id": "capabilities", "return": {}}\n' * 3,
            b'x' * (2 << 20)]
        listeners = []
        for i, data in enumerate(hostile):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.daemons.qmp / f'bad{i}.qmp'))
            listener.listen(8)
            listeners.append(listener)
            threading.Thread(target=self.send_nonsense, daemon=True,
                             args=(listener, data)).start()
        self.daemons.start_controller()
        self.daemons.start_agent()
        time.sleep(2)
        peer = self.qmp('good', [self.space_request(7)])
        self.wait_answers(peer, [{'id': 7, 'result': 'grown'}])
        self.assertIsNone(self.daemons.agent.poll())
        self.assertIsNone(self.daemons.controller.poll())
        for listener in listeners:
            listener.close()

    def test_fuzzed_machine(self):
        """... nor does one whose answers are broken at random."""
        seed = random.randrange(1 << 32)
        rand = random.Random(seed)
        print(f'seed {seed}')
        good = b''.join(json.dumps(x).encode() + b'\n' for x in (
            {'QMP': {'version': {}}},
            {'return': {}, 'id': 'capabilities'},
            {'return': [self.space_request(3)], 'id': 'query'},
            {'event': 'BLOCK_SPACE_REQUEST', 'data': self.space_request(4)},
            {'return': {'outcome': 'grown'}, 'id': 'resolve 3 1'},
            {'error': {'class': 'x', 'desc': 'y'}, 'id': 'resolve 4 1'}))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.daemons.qmp / 'bad.qmp'))
        listener.listen(8)
        listener.settimeout(10)
        self.daemons.configure([{**self.policy, 'max': 1 << 50,
                                 'resource': self.base}])
        self.daemons.start_controller()
        self.daemons.start_agent()
        end = time.monotonic() + float(os.environ.get('FUZZ_SECONDS', '5'))
        count = 0
        while time.monotonic() < end:
            conn, _ = listener.accept()     # fails if the agent has ended
            with conn:
                for _ in range(200):
                    data = bytearray(good)
                    for _ in range(rand.randrange(1, 4)):
                        at = rand.randrange(len(data))
                        if rand.random() < 0.7:
                            data[at] = rand.choice(b'"{}[]:,0-9\\e.ax\n')
                        else:
                            del data[at:at + rand.randrange(1, 20)]
                    try:
                        conn.sendall(data)
                    except OSError:
                        break
                    count += 1
        listener.close()
        print(f'{count} cases')
        peer = self.qmp('good', [self.space_request(7)])
        self.wait_answers(peer, [{'id': 7, 'result': 'grown'}])
        self.assertIsNone(self.daemons.agent.poll())
        self.assertIsNone(self.daemons.controller.poll())

    @staticmethod
    def send_nonsense(listener, data):
        while True:
            try:
                conn, _ = listener.accept()
                with conn:
                    conn.sendall(b'{"QMP": {}}\n' + data)
                    conn.settimeout(1)
                    conn.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                if listener.fileno() < 0:
                    return


if __name__ == '__main__':
    unittest.main()
