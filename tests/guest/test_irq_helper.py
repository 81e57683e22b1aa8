"""qemu-irq-affinity-helper: peers that close at once, or hold it up.

The helper runs on a simulated host (--x-root); no privilege is needed, but for
the test with FUSE.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from hotpath_paths import qemu_build

DEVICE = '0000:01:00.0'
HELLO, MOVE, RESTORE = 1, 2, 3
WATCH = 4
IRQS = range(40, 56)
PATIENCE_S = 30
PER_PROCESS, PER_USER = 16, 200

# A FUSE file system of its own mount namespace, with one file.  It is opened,
# and then no question about it is answered.
FUSE_SERVER = r'''
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)

def check(result, what):
    if result:
        print(what, os.strerror(ctypes.get_errno()), flush=True)
        sys.exit(1)

folder = sys.argv[1]
try:
    fd = os.open('/dev/fuse', os.O_RDWR)
except OSError as err:
    print(err, flush=True)
    sys.exit(1)
check(libc.unshare(0x20000), 'unshare:')
check(libc.mount(b'none', b'/', None, 0x44000, None), 'mount /:')
check(libc.mount(b'fuse', folder.encode(), b'fuse', 6, b'fd=%d,rootmode=40000,'
                 b'user_id=0,group_id=0' % fd), 'mount of FUSE:')
print('ready', flush=True)
attr = struct.pack('=6Q10I', 2, 0, 0, 0, 0, 0, 0, 0, 0, 0o100600, 1, 0, 0, 0,
                   4096, 0)
answers = {
    26: struct.pack('=4I2H2I2HI28x', 7, 31, 4096, 0, 1, 1, 4096, 1, 1, 0, 0),
    1: struct.pack('=4Q2I', 2, 0, 0, 0, 0, 0) + attr,       # LOOKUP
    14: struct.pack('=QII', 1, 0, 0),                       # OPEN
}
while True:
    data = os.read(fd, 1 << 20)
    length, op, unique = struct.unpack_from('=IIQ', data)
    if op in answers:
        body = answers[op]
        os.write(fd, struct.pack('=IiQ', 16 + len(body), 0, unique) + body)
    elif op != 2:
        print('asked', op, flush=True)
'''


def request(op, number, cpus='', cpu=0):
    """One request, as in irq-affinity-proto.h."""
    return struct.pack('=6I24s208s', op, number, number, cpu, os.getpid(), 0,
                       DEVICE.encode(), cpus.encode())


class HelperTest(unittest.TestCase):
    """A helper on a simulated host."""
    options = ()

    def setUp(self):
        self.root = Path(tempfile.mkdtemp(prefix='irq-helper-'))
        self.addCleanup(shutil.rmtree, self.root)
        group = self.root / 'sys/devices/virtual/vfio/7'
        self.put(group / 'uevent')
        (group / 'subsystem').symlink_to('../../../../class/vfio')
        char = self.root / 'sys/dev/char/1:3'           # /dev/null
        char.parent.mkdir(parents=True)
        char.symlink_to('../../devices/virtual/vfio/7')
        self.put(self.root / 'sys/kernel/iommu_groups/7/devices' / DEVICE)
        pid = os.getpid()
        self.put(self.root / f'proc/{pid}/task/{pid}/status',
                 'Name:\tqemu\nCpus_allowed_list:\t0-3\n')
        for irq in IRQS:
            self.put(self.mask(irq), '3\n')
            self.put(self.root / f'sys/kernel/irq/{irq}/actions',
                     f'vfio-msix[{irq - IRQS[0]}]({DEVICE})\n')
        self.path = str(self.root / 'socket')
        self.log = self.root / 'log'
        with open(self.log, 'w') as log:
            self.helper = subprocess.Popen(
                [str(qemu_build() / 'qemu-irq-affinity-helper'),
                 *self.options, '--x-root', str(self.root),
                 '--socket', self.path], stderr=log)
        self.addCleanup(self.helper.wait)
        self.addCleanup(self.helper.terminate)

    @staticmethod
    def put(path, text=''):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def mask(self, irq):
        return self.root / f'proc/irq/{irq}/smp_affinity_list'

    def connect(self):
        end = time.monotonic() + PATIENCE_S
        while True:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                peer.connect(self.path)
                peer.settimeout(PATIENCE_S)
                return peer
            except OSError:
                peer.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    @contextlib.contextmanager
    def held(self):
        """Keep the helper from accepting a connection."""
        self.helper.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.helper.send_signal(signal.SIGCONT)

    def ask(self, peer, *args, fds=()):
        """Send a request; return the error of the reply, None: hung up."""
        try:
            socket.send_fds(peer, [request(*args)], fds)
            reply = peer.recv(16)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return struct.unpack('=4I', reply)[2] if reply else None


class LastWords(HelperTest):
    """A device's interrupts are given back, and the connection is closed."""
    # less than there are: the rest is served a second later
    options = ('--max-moves-per-s=10',)

    def left(self):
        return [irq for irq in IRQS
                if self.mask(irq).read_text().strip() != '0-2']

    def test_all_are_restored(self):
        with self.connect() as peer, open('/dev/null', 'r+b') as proof:
            peer.send(request(HELLO, 1))
            for irq in IRQS:
                socket.send_fds(peer, [request(RESTORE, irq, '0-2')],
                                [proof.fileno()])
        end = time.monotonic() + PATIENCE_S
        while self.left() and time.monotonic() < end:
            time.sleep(0.02)
        self.assertEqual(self.left(), [])

    def test_no_late_moves(self):
        """What is served after the peer hung up moves nothing any more."""
        self.connect().close()              # the helper listens
        with open('/dev/null', 'r+b') as proof:
            with self.held(), self.connect() as peer:
                peer.send(request(HELLO, 1))
                for message in (request(MOVE, IRQS[0], cpu=2),
                                request(RESTORE, IRQS[1], '0-2')):
                    socket.send_fds(peer, [message], [proof.fileno()])
            end = time.monotonic() + PATIENCE_S
            while IRQS[1] in self.left() and time.monotonic() < end:
                time.sleep(0.02)
            self.assertNotIn(IRQS[1], self.left())
            self.assertEqual(self.mask(IRQS[0]).read_text().strip(), '3')
            # it does when the peer is there
            with self.connect() as peer:
                self.assertEqual(self.ask(peer, HELLO, 1), 0)
                self.assertEqual(self.ask(peer, MOVE, IRQS[0], '', 2,
                                          fds=[proof.fileno()]), 0)
            self.assertEqual(self.mask(IRQS[0]).read_text().strip(), '2')


class Shortage(HelperTest):
    """The helper has no descriptor left."""

    def switches(self):
        """How often the helper has gone to sleep."""
        text = Path(f'/proc/{self.helper.pid}/status').read_text()
        return int(text.split('\nvoluntary_ctxt_switches:')[1].split()[0])

    def test_no_descriptors(self):
        with self.connect() as peer:        # the helper listens
            self.assertEqual(self.ask(peer, HELLO, 1), 0)
        pid = self.helper.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # only those that are open from the start
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        with self.connect() as peer:
            peer.send(request(HELLO, 1))
            begin, before = time.monotonic(), self.switches()
            while self.switches() < before + 20:
                self.assertLess(time.monotonic(), begin + PATIENCE_S,
                                'no further attempt, or it spins')
                time.sleep(0.01)
            # ten attempts a second, and not some thousand
            self.assertLess(self.switches() - before,
                            100 * (1 + time.monotonic() - begin))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            self.assertEqual(struct.unpack('=4I', peer.recv(16))[2], 0)


class Stuck(HelperTest):
    """Descriptors that keep whoever closes them waiting."""

    def lingering(self):
        """Return a socket that is not closed until its peer has read.

        Whoever closes the last descriptor of it waits, an hour at most.
        """
        with socket.socket() as listener:
            try:
                listener.bind(('127.0.0.1', 0))
                listener.listen()
                near = socket.create_connection(listener.getsockname())
            except OSError as err:
                self.skipTest(f'no TCP at 127.0.0.1: {err}')
            far, _ = listener.accept()
        near.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                near.send(bytes(1 << 16))
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                        struct.pack('ii', 1, 3600))
        self.addCleanup(far.close)
        return near, far

    @staticmethod
    def drain(far):
        while far.recv(1 << 20):
            pass

    def stick(self):
        """Return a connection whose server waits, and what ends the wait."""
        self.connect().close()              # the helper listens
        near, far = self.lingering()
        with self.held():
            peer = self.connect()
            peer.send(request(HELLO, 1))
            socket.send_fds(peer, [request(MOVE, IRQS[0])], [near.fileno()])
            near.close()                    # the helper has the last one
        self.assertEqual(struct.unpack('=4I', peer.recv(16))[2], 0)
        self.assertEqual(struct.unpack('=4I', peer.recv(16))[2], errno.EPERM)
        return peer, far

    def serve_another(self):
        """Check that another peer is served all the same."""
        with self.connect() as other, open('/dev/null', 'r+b') as proof:
            self.assertEqual(self.ask(other, HELLO, 1), 0)
            for irq in IRQS:
                self.assertEqual(self.ask(other, RESTORE, irq, '0-2',
                                          fds=[proof.fileno()]), 0)

    def assert_silent(self, peer):
        """What serves @peer still waits."""
        peer.setblocking(False)
        with self.assertRaises(BlockingIOError):
            peer.recv(16)
        peer.settimeout(PATIENCE_S)

    def test_replies_not_read(self):
        """All who ask first and read later get their descriptors."""
        with self.connect() as peer:
            self.assertEqual(self.ask(peer, HELLO, 1), 0)
            for i in range(8):
                peer.send(request(WATCH, i))
            self.serve_another()
            found = []
            for i in range(8):
                data, fds, _, _ = socket.recv_fds(peer, 16, 4)
                for fd in fds:
                    os.close(fd)
                found.append((*struct.unpack('=4I', data)[1:3], len(fds)))
        # a container may forbid the scheduler's events, even to root
        error = found[0][1]
        self.assertIn(error, (0, errno.EACCES, errno.EPERM, errno.ENOSYS,
                              errno.ENOENT))
        self.assertEqual(found, [(i, error, 0 if error else 1)
                                 for i in range(8)])

    def test_others_are_served(self):
        peer, far = self.stick()
        with peer:
            peer.send(request(HELLO, 1))
            self.serve_another()
            self.assert_silent(peer)
            self.drain(far)
            self.assertEqual(struct.unpack('=4I', peer.recv(16))[2], 0)

    def test_bound_of_a_process(self):
        """A server counts until it has ended, not until its peer is gone."""
        peer, far = self.stick()
        peer.close()
        with contextlib.ExitStack() as stack:
            for _ in range(PER_PROCESS - 1):
                one = stack.enter_context(self.connect())
                self.assertEqual(self.ask(one, HELLO, 1), 0)
            with self.connect() as more:
                self.assertIsNone(self.ask(more, HELLO, 1))
            self.serve_from_another_process()
            self.drain(far)
            self.wait_served()

    def serve_another_process(self):
        with self.connect() as other:
            if self.ask(other, HELLO, 1) != 0:
                raise AssertionError('not served')

    def wait_served(self):
        end = time.monotonic() + PATIENCE_S
        while True:
            with self.connect() as more:
                if self.ask(more, HELLO, 1) == 0:
                    return
            self.assertLess(time.monotonic(), end, 'no room was made')
            time.sleep(0.02)

    def test_bound_of_a_user(self):
        children = []
        self.addCleanup(lambda: [os.waitpid(c, 0) for c in children])
        gate, end = os.pipe()
        self.addCleanup(os.close, end)
        told, tell = os.pipe()
        left = PER_USER
        while left:
            count = min(left, PER_PROCESS)
            left -= count
            child = os.fork()
            if not child:
                os.close(end)
                with contextlib.suppress(BaseException):
                    peers = [self.connect() for _ in range(count)]
                    good = all(self.ask(p, HELLO, 1) == 0 for p in peers)
                    os.write(tell, b'y' if good else b'n')
                    os.read(gate, 1)        # until the test is over
                os._exit(0)
            children.append(child)
        os.close(gate)
        os.close(tell)
        said = b''
        while len(said) < len(children):
            part = os.read(told, 64)
            self.assertTrue(part, f'{said} of {len(children)}')
            said += part
        os.close(told)
        if b'n' in said and 'fork' in self.log.read_text():
            self.skipTest(f'no {PER_USER} processes: {self.log.read_text()}')
        self.assertEqual(said, b'y' * len(children))
        with self.connect() as more:
            self.assertIsNone(self.ask(more, HELLO, 1))

    def send_stuck(self, peer):
        """Leave a descriptor that lingers in a connection; return its peer."""
        near, far = self.lingering()
        peer.send(request(HELLO, 1))
        socket.send_fds(peer, [request(MOVE, IRQS[0])], [near.fileno()])
        near.close()
        return far

    def serve_from_another_process(self):
        pid = os.fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException):
                self.serve_another_process()
                status = 0
            os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_refused(self):
        """What is left in a connection that is refused holds up nobody."""
        with contextlib.ExitStack() as stack:
            for _ in range(PER_PROCESS):
                one = stack.enter_context(self.connect())
                self.assertEqual(self.ask(one, HELLO, 1), 0)
            with self.held():
                peers = [stack.enter_context(self.connect())
                         for _ in range(3)]
                for peer in peers:
                    self.send_stuck(peer)
            for peer in peers:
                with contextlib.suppress(ConnectionResetError):
                    self.assertEqual(peer.recv(16), b'')
            self.serve_from_another_process()
        self.helper.terminate()
        self.assertEqual(self.helper.wait(PATIENCE_S), 0)

    def test_not_accepted(self):
        """Nor what is left in one that the helper never accepted."""
        self.connect().close()              # the helper listens
        with self.held():
            peers = [self.connect() for _ in range(3)]
            for peer in peers:
                self.addCleanup(peer.close)
                self.send_stuck(peer)
            self.helper.terminate()
        self.assertEqual(self.helper.wait(PATIENCE_S), 0)
        for peer in peers:                  # and it is let go
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(peer.recv(16), b'')

    @staticmethod
    def close(fd):
        with contextlib.suppress(ConnectionAbortedError):
            os.close(fd)

    def test_fuse(self):
        """A real one: neither asked about its file nor at its closing."""
        if os.geteuid():
            self.skipTest('mounting FUSE needs root')
        folder = self.root / 'mnt'
        folder.mkdir()
        server = subprocess.Popen(
            [sys.executable, '-c', FUSE_SERVER, str(folder)],
            stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)        # all that waits for it goes on
        line = server.stdout.readline().strip()
        if line != 'ready':
            self.skipTest(f'no FUSE here: {line}')
        file = os.open(f'/proc/{server.pid}/root{folder}/f', os.O_RDWR)
        self.addCleanup(self.close, file)
        self.addCleanup(server.kill)        # else this close waits as well
        with self.connect() as peer:
            self.assertEqual(self.ask(peer, HELLO, 1), 0)
            socket.send_fds(peer, [request(MOVE, IRQS[0])], [file])
            self.assertRegex(server.stdout.readline(), '^asked')
            self.serve_another()
            self.assert_silent(peer)
            # nor is the helper kept from ending
            self.helper.terminate()
            self.assertEqual(self.helper.wait(PATIENCE_S), 0)


if __name__ == '__main__':
    unittest.main()
