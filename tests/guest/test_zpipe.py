# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's port on a zpipe: every byte, whatever happens meanwhile."""
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

from guest import Guest, GuestFailure, hotpath_counters, is_base_build
from hotpath_paths import BUILD, link_firmware, qemu_binary, report_dir
from zpipe_peer import Peer, stream_program

GIB = 1 << 30
MIB = 1 << 20
NOBODY = 65534
CAPS = 'sys_ptrace'

# The guest does what the host writes to it, a line at a time.
SHELL = '''
# port NAME: its device
port()
{
    for p in /sys/class/virtio-ports/vport*; do
        [ "$(cat "$p/name")" != "$1" ] || echo "/dev/${p##*/}"
    done
}
# both NAME RECEIVE-BYTES SEED SEND-BYTES SEED: both ways at once
both()
{
    exec 4<>"$(port "$1")"
    stream check "$2" "$3" <&4 2>/tmp/in &
    checker=$!
    stream make "$4" "$5" >&4 2>/tmp/out || return 1
    wait $checker || return 1
    exec 4<&-
}
ln -s /stream /bin/stream
result ready
while read -r line <&3 && [ "$line" != bye ]; do
    ( eval "$line" )
    result status $? $(cat /tmp/in /tmp/out 2>/dev/null)
done
'''


def need_zpipe():
    """Skip on the unpatched base; fail if else the chardev is missing."""
    if is_base_build():
        raise unittest.SkipTest('the unpatched base has no chardev "zpipe"')
    said = subprocess.run([str(qemu_binary()), '-chardev', 'help'], text=True,
                          stdout=subprocess.PIPE, check=True).stdout
    if 'zpipe' not in said.split():
        raise GuestFailure(f'{qemu_binary()} has no chardev "zpipe"')


def without_ptrace():
    """Return a wrapper that takes away the right to trace others."""
    return () if os.geteuid() else (
        'setpriv', f'--bounding-set=-{CAPS}', f'--inh-caps=-{CAPS}')


def qemu_without_ptrace(folder):
    """Return a program that runs QEMU without this right."""
    script = Path(folder) / 'qemu-without-ptrace'
    script.write_text('#!/bin/sh\nexec ' + ' '.join(without_ptrace())
                      + f' {qemu_binary()} "$@"\n')
    script.chmod(0o755)
    return script


class Page(unittest.TestCase):
    """What docs/zpipe.rst says of QEMU."""

    def test_trace_events(self):
        need_zpipe()
        said = subprocess.run([str(qemu_binary()), '-trace', 'help'],
                              text=True, stdout=subprocess.PIPE,
                              check=True).stdout.split()
        page = (Path(__file__).resolve().parents[2] / 'docs'
                / 'zpipe.rst').read_text(encoding='utf-8')
        events = {x for x in said if x.startswith('zpipe_')}
        self.assertTrue(events)
        self.assertEqual(set(re.findall(r'^``(zpipe_\w+)``', page, re.M)),
                         events)


class ShellGuest(Guest):
    """A guest that does what it is told."""

    def __init__(self, name, chardevs, **options):
        """
        @chardevs: {name of the port: options of its chardev}
        @kind: of the chardevs; @kinds: of some of them, by port
        @serial: properties of the device
        """
        args = list(options.pop('args', ()))
        kind = options.pop('kind', 'zpipe')
        kinds = options.pop('kinds', {})
        args += ['-device', 'virtio-serial-pci,id=zserial'
                 + options.pop('serial', '')]
        for port, text in chardevs.items():
            args += ['-chardev', f'{kinds.get(port, kind)},id={port},{text}',
                     '-device',
                     f'virtserialport,bus=zserial.0,chardev={port},'
                     f'name={port}']
        options.setdefault('timeout', 300)
        super().__init__(name, SHELL, args=args, files={
            'stream': stream_program().read_bytes()}, **options)

    def extend(self, seconds):
        """Give it more time, from now on."""
        self._deadline = time.monotonic() + seconds
        self.timeout = seconds

    def tell(self, line):
        """Let the guest begin with something."""
        self.results.pop('status', None)
        self._conn.sendall(line.encode() + b'\n')

    def told(self):
        """Wait for its end; return (exit status, what was printed)."""
        words = self.wait_result('status').split(' ', 1)
        return int(words[0]), ' '.join(words[1:])

    def run(self, line):
        """Do something that must work."""
        self.tell(line)
        status, text = self.told()
        if status:
            self._fail(f'"{line}" ended with status {status}: {text}')
        return text

    def end(self):
        """Power off, properly."""
        self._conn.sendall(b'bye\n')
        return self.finish()

    def info(self, port):
        """What query-zpipe says of a port's chardev."""
        return next(x for x in self.vm.cmd('query-zpipe')
                    if x['label'] == port)

    def sent(self, port):
        """Bytes that peers have taken from the guest."""
        return sum(x['tx-bytes'] for x in self.info(port)['counts'])

    def wait_info(self, port, until, what):
        while not until(self.info(port)):
            self.check_time(what)
            time.sleep(0.02)
        return self.info(port)

    def wait_sent(self, port, count):
        self.wait_info(port, lambda x: self.sent(port) >= count,
                       f'{count} bytes')


class ZpipeTest(unittest.TestCase):
    """Common to the tests: a directory for sockets, peers that are ended."""

    def setUp(self):
        need_zpipe()
        self.folder = Path(tempfile.mkdtemp(prefix='hotzp-', dir='/tmp'))
        os.chmod(self.folder, 0o755)
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def peer(self, *args, **options):
        peer = Peer(*args, **options)
        self.addCleanup(peer.close)
        return peer


class OneGuest(ZpipeTest):
    """Many tests with one guest and three ports:

    z0: nothing said; z1: cross-memory access; z2: guest memory is shown
    """

    @classmethod
    def setUpClass(cls):
        need_zpipe()
        cls.home = tempfile.mkdtemp(prefix='hotzp-', dir='/tmp')
        os.chmod(cls.home, 0o755)
        cls.addClassCleanup(shutil.rmtree, cls.home, ignore_errors=True)
        common = 'server=on,wait=off'
        cls.guest = ShellGuest(
            'zpipe',
            {'z0': f'path={cls.home}/z0,{common},hold-ms=20000',
             'z1': f'path={cls.home}/z1,{common},cma=on',
             'z2': f'path={cls.home}/z2,{common},share-ram=on,mechanism=map'},
            machine='q35,memory-backend=m', qemu=qemu_without_ptrace(cls.home),
            args=['-object', 'memory-backend-memfd,id=m,size=256M,share=on,'
                  'seal-write=on'])
        cls.guest.__enter__()
        cls.addClassCleanup(cls.guest.close)
        cls.guest.wait_result('ready')
        for name in ('z0', 'z1', 'z2'):
            os.chmod(f'{cls.home}/{name}', 0o777)   # for another user

    def setUp(self):
        super().setUp()
        self.guest.extend(60)

    def path(self, port):
        return f'{self.home}/{port}'

    def exchange(self, port, size, *options, meanwhile=None, **peer_options):
        """Send @size both ways at once; return the peer's statistics."""
        peer = self.peer(self.path(port), *options, send=(size, 11),
                         receive=(size, 22), **peer_options)
        self.guest.wait_info(port, lambda x: x['state'] == 'connected',
                             'connected')
        self.guest.tell(f'both {port} {size} 11 {size} 22')
        if meanwhile:
            meanwhile()
        status, text = self.guest.told()
        self.assertEqual(status, 0, text)
        stats = peer.finish(60)
        self.assertEqual(stats['received'], size)
        self.guest.wait_info(port, lambda x: x['state'] != 'connected',
                             'disconnected')
        return stats

    def test_gibibyte_each_way(self):
        """The peer's posted reads are filled without a look at the guest's
        memory; its own buffers are looked at by QEMU."""
        stats = self.exchange('z0', GIB)
        self.assertGreater(stats['received direct']['bytes'], 0)
        self.assertEqual(stats.get('cma-errors'), 0)
        self.assertEqual(self.guest.info('z0')['regions'], 0)

    def test_stop_and_cont(self):
        def stop_often():
            for n in range(1, 6):
                self.guest.vm.cmd('stop')
                before = self.guest.sent('z0')
                time.sleep(0.1)
                self.assertEqual(self.guest.sent('z0'), before)
                self.guest.vm.cmd('cont')
                time.sleep(0.2)
        self.exchange('z0', 192 * MIB, meanwhile=stop_often)

    def test_background_snapshot(self):
        """It ends as a migration does, but the VM stays: so do its pipes."""
        from qemu.qmp import ExecuteError
        vm, wanted = self.guest.vm, {'capability': 'background-snapshot'}

        def snapshot():
            vm.cmd('migrate', uri=f'file:{self.home}/snapshot')
            end = time.monotonic() + 60
            while vm.cmd('query-migrate')['status'] != 'completed':
                self.assertLess(time.monotonic(), end)
                time.sleep(0.05)
            os.unlink(f'{self.home}/snapshot')
        vm.cmd('migrate-set-parameters', **{'max-bandwidth': 1 << 40})
        try:
            vm.cmd('migrate-set-capabilities',
                   capabilities=[{**wanted, 'state': True}])
        except ExecuteError as err:     # the host's kernel has it not
            self.skipTest(str(err))
        try:
            self.exchange('z0', 192 * MIB, meanwhile=snapshot)
        finally:
            vm.cmd('migrate-set-capabilities',
                   capabilities=[{**wanted, 'state': False}])
        self.exchange('z0', MIB)        # another client

    def test_lost_connection(self):
        """Both sides go on where they were."""
        def break_often():
            for n in range(5):
                time.sleep(0.2)
                self.guest.vm.cmd('yank', instances=[
                    {'type': 'chardev', 'id': 'z0'}])
                self.guest.wait_info(
                    'z0', lambda x: x['state'] == 'connected', 'connected')
        stats = self.exchange('z0', 192 * MIB, '--reconnect=10',
                              meanwhile=break_often)
        self.assertEqual(stats['resumed'], 5)

    def test_guest_memory_shown(self):
        stats = self.exchange('z2', 64 * MIB, '--view')
        self.assertGreater(stats['received map']['bytes'], 32 * MIB)
        self.assertGreater(hotpath_counters(
            self.guest.vm, 'vm').get('zpipe-tx-map-bytes', 0), 0)

    def denied(self):
        return sum(x['count'] for x in self.guest.info('z1')['fallbacks']
                   if x['reason'] == 'cma-denied')

    def cma(self, allowed, *options, **peer_options):
        """The peer's buffers are plain memory; QEMU must not trace others
        than those of its own user that are dumpable."""
        before, seen = self.denied(), {}
        stats = self.exchange(
            'z1', 32 * MIB, '--cma', *options,
            meanwhile=lambda: seen.update(self.guest.info('z1')),
            **peer_options)
        self.assertEqual((seen['cma-read'], seen['cma-write']),
                         (allowed, allowed))
        if allowed:
            self.assertEqual(self.denied(), before)
            self.assertGreater(stats['received direct']['bytes'], 0)
        else:
            self.assertGreater(self.denied(), before)
            self.assertNotIn('received direct', stats)

    def test_cma(self):
        # the kernel wants that the one has no capability that the other lacks
        self.cma(True, wrapper=without_ptrace())

    def test_cma_refused_not_dumpable(self):
        self.cma(False, '--non-dumpable')

    def test_cma_refused_other_user(self):
        if os.geteuid():
            raise unittest.SkipTest('only root can run a peer as another user')
        self.cma(False, user=NOBODY)

    def test_peer_killed(self):
        """The guest goes on, and so does the next peer."""
        peer = self.peer(self.path('z1'), receive=(GIB, 22))
        self.guest.tell('(stream make 1073741824 22 >"$(port z1)" & '
                        'echo $! >/tmp/pid) 2>/dev/null')
        self.guest.told()
        self.guest.wait_sent('z1', self.guest.sent('z1') + 4 * MIB)
        peer.zpipe.kill()
        self.guest.wait_info('z1', lambda x: x['state'] == 'disconnected',
                             'disconnected')
        self.guest.run('kill $(cat /tmp/pid); sleep 0.1')
        self.exchange('z1', 8 * MIB)

    def test_two_guests(self):
        """zpipe to zpipe, nothing between."""
        size = 64 * MIB
        other = ShellGuest('zpipe-other', {'z9': f'path={self.path("z0")}'})
        with other:
            other.wait_result('ready')
            self.guest.tell(f'both z0 {size} 5 {size} 6')
            other.tell(f'both z9 {size} 6 {size} 5')
            for guest in (other, self.guest):
                status, text = guest.told()
                self.assertEqual(status, 0, text)
            other.end()


class Packed(ZpipeTest):
    """Packed rings: elements are given back to the queue in another way."""

    def test_stop_reset_and_streams(self):
        size = 64 * MIB
        with ShellGuest('zpipe-packed', {
                'z0': f'path={self.folder}/z0,server=on,wait=off,'
                      'hold-ms=20000'}, serial=',packed=on') as guest:
            guest.wait_result('ready')
            # feature 34 is VIRTIO_F_RING_PACKED
            features = guest.run('cat /sys/bus/virtio/drivers/virtio_console/'
                                 'virtio*/features >/tmp/out; : >/tmp/in')
            self.assertEqual(features.split()[-1][34], '1')
            peer = self.peer(f'{self.folder}/z0', send=(size, 11),
                             receive=(size, 22))
            guest.wait_info('z0', lambda x: x['state'] == 'connected',
                            'connected')
            guest.tell(f'both z0 {size} 11 {size} 22')
            for _ in range(5):
                # what the peer has not begun with goes back to the queue
                guest.vm.cmd('stop')
                time.sleep(0.05)
                guest.vm.cmd('cont')
                time.sleep(0.2)
            status, text = guest.told()
            self.assertEqual(status, 0, text)
            self.assertEqual(peer.finish(60)['received'], size)
            guest.end()


class SocketPeer(threading.Thread):
    """Reads all that a socket chardev sends."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.data = bytearray()
        self._socket = socket.socket(socket.AF_UNIX)
        for _ in range(500):
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                time.sleep(0.02)
        self.start()

    def run(self):
        with self._socket:
            while data := self._socket.recv(65536):
                self.data += data


def base_binary():
    """The unpatched QEMU; skips the test if it is not built."""
    path = BUILD / 'base' / 'out' / 'qemu-system-x86_64'
    named = os.environ.get('QEMU_BASE', str(path))
    if not os.access(named, os.X_OK):
        raise unittest.SkipTest(f'there is no {named}: "make build-base", or '
                                'name one in QEMU_BASE')
    link_firmware(Path(named).parent)
    return Path(named)


class Unpatched(ZpipeTest):
    """The state that is migrated is that of upstream, in both directions."""
    SIZE = 48 * MIB

    def machine(self, name, kind, path, **options):
        """A guest whose port goes to a socket, or to a zpipe."""
        return ShellGuest(name, {'z0': f'path={path},server=on,wait=off'},
                          kind=kind, **options)

    def reader(self, kind, path, output):
        if kind == 'zpipe':
            return self.peer(path, '--reconnect=20', output=output)
        return SocketPeer(path)

    @staticmethod
    def begun(kind, reader, file):
        if kind == 'zpipe':
            return os.fstat(file.fileno()).st_size > 0
        return len(reader.data) > 0

    def move(self, source, target, uri):
        source.vm.cmd('migrate', uri=uri)
        while True:
            state = source.vm.cmd('query-migrate')['status']
            if state == 'completed':
                return
            self.assertNotEqual(state, 'failed')
            source.check_time('migration completed')
            time.sleep(0.05)

    def go(self, kinds, binaries):
        """A guest writes a stream, and is moved meanwhile."""
        uri, name = f'unix:{self.folder}/migration', '-'.join(kinds)
        paths = [self.folder / 'first', self.folder / 'second']
        files = [open(self.folder / f'{x}-data', 'w+b') for x in 'ab']
        for file in files:
            self.addCleanup(file.close)
        with self.machine(f'zpipe-from-{name}', kinds[0], paths[0],
                          qemu=binaries[0]) as source, \
                self.machine(f'zpipe-to-{name}', kinds[1], paths[1],
                             qemu=binaries[1],
                             args=('-incoming', uri)) as target:
            source.wait_result('ready')
            readers = [self.reader(kinds[0], paths[0], files[0])]
            if kinds[1] == 'socket':
                readers.append(SocketPeer(paths[1]))
            # a megabyte at a time: it takes longer than to move the guest
            source.tell('exec 4<>"$(port z0)"; sleep 1; '
                        f'stream make {self.SIZE} 7 | '
                        f'for i in $(seq {self.SIZE // MIB}); do '
                        'dd bs=1M count=1 iflag=fullblock 2>/dev/null; '
                        'usleep 150000; done >&4; sleep 3')
            while not self.begun(kinds[0], readers[0], files[0]):
                source.check_time('stream begun')
                time.sleep(0.05)
            self.move(source, target, uri)
            if kinds[1] == 'zpipe':
                readers.append(self.reader(kinds[1], paths[1], files[1]))
            status, text = target.told()
            self.assertEqual(status, 0, text)
            target.end()
        return self.collect(kinds, readers, files)

    def collect(self, kinds, readers, files):
        parts = []
        for kind, reader, file in zip(kinds, readers, files):
            if kind == 'zpipe':
                reader.zpipe.terminate()
                reader.zpipe.wait(20)
                file.seek(0)
                parts.append(file.read())
            else:
                reader.join(20)
                parts.append(bytes(reader.data))
        self.assertGreater(len(parts[1]), 0)
        self.assertTrue(b''.join(parts) == stream_bytes(self.SIZE, 7),
                        f'{[len(x) for x in parts]} of {self.SIZE} bytes')

    def test_sockets_to_base(self):
        self.go(('socket', 'socket'), (qemu_binary(), base_binary()))

    def test_sockets_from_base(self):
        self.go(('socket', 'socket'), (base_binary(), qemu_binary()))

    def test_zpipe_to_base(self):
        """A zpipe leaves nothing in the state that upstream does not know."""
        self.go(('zpipe', 'socket'), (qemu_binary(), base_binary()))

    def test_base_to_zpipe(self):
        self.go(('socket', 'zpipe'), (base_binary(), qemu_binary()))

    def test_base_refuses_the_chardev(self):
        done = subprocess.run([base_binary(), '-M', 'none', '-chardev',
                               'zpipe,id=a,path=/nonexistent/x'], text=True,
                              stderr=subprocess.PIPE, check=False, timeout=30)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn('zpipe', done.stderr)


def stream_bytes(size, seed):
    """The bytes of a stream."""
    return subprocess.run([str(stream_program()), 'make', str(size),
                           str(seed)], stdout=subprocess.PIPE, check=True,
                          stderr=subprocess.DEVNULL).stdout


class Moved(ZpipeTest):
    """The machine's state is saved, loaded, moved in mid-stream."""
    SIZE = 256 * MIB

    def guest(self, name, extra='', **options):
        return ShellGuest(
            name, {'z0': f'path={self.folder}/z0,server=on,wait=off,'
                         f'hold-ms=20000{extra}'}, **options)

    def hmp(self, guest, line):
        said = guest.vm.cmd('human-monitor-command', command_line=line)
        self.assertEqual(said.strip(), '', f'monitor command "{line}"')

    def test_snapshot(self):
        """What the peer had at the snapshot does not come again."""
        size = self.SIZE // 4
        disk = report_dir('guest', 'zpipe-snapshot') / 'disk.qcow2'
        subprocess.run([str(qemu_binary('qemu-img')), 'create', '-q', '-f',
                        'qcow2', str(disk), '32M'], check=True)
        self.addCleanup(disk.unlink)
        received = self.folder / 'received'
        with self.guest('zpipe-snapshot', args=(
                '-blockdev', f'driver=file,node-name=f,filename={disk}',
                '-blockdev', 'driver=qcow2,node-name=d,file=f',
                '-device', 'virtio-blk-pci,drive=d')) as guest, \
                open(received, 'wb') as output:
            guest.wait_result('ready')
            peer = self.peer(f'{self.folder}/z0', output=output)
            guest.tell(f'stream make {size} 7 >"$(port z0)"')
            guest.wait_sent('z0', size // 4)
            guest.vm.cmd('stop')
            at_snapshot = guest.sent('z0')
            self.hmp(guest, 'savevm middle')
            guest.vm.cmd('cont')
            self.assertEqual(guest.told()[0], 0)
            self.assertEqual(guest.sent('z0'), size)
            guest.results.clear()
            self.hmp(guest, 'loadvm middle')
            self.assertEqual(guest.told()[0], 0)
            self.assertEqual(guest.sent('z0'), 2 * size - at_snapshot)
            guest.end()
            peer.zpipe.wait(20)
        self.assertLess(at_snapshot, size)
        data, whole = received.read_bytes(), stream_bytes(size, 7)
        self.assertEqual(len(data), 2 * size - at_snapshot)
        self.assertTrue(data == whole + whole[at_snapshot:])

    def test_migration(self):
        """The peer goes from one QEMU to the other; both streams are exact."""
        size, uri = self.SIZE, f'unix:{self.folder}/migration'
        with self.guest('zpipe-source') as source:
            source.wait_result('ready')
            peer = self.peer(f'{self.folder}/z0', '--reconnect=20',
                             send=(size, 11), receive=(size, 22))
            source.wait_info('z0', lambda x: x['state'] == 'connected',
                             'connected')
            source.tell(f'both z0 {size} 11 {size} 22')
            with self.guest('zpipe-target',
                            args=('-incoming', uri)) as target:
                self.assertEqual(target.info('z0')['state'], 'waiting-for-vm')
                source.wait_sent('z0', size // 8)
                source.vm.cmd('migrate', uri=uri)
                while True:
                    state = source.vm.cmd('query-migrate')['status']
                    if state == 'completed':
                        break
                    self.assertNotEqual(state, 'failed')
                    source.check_time('migration completed')
                    time.sleep(0.05)
                status, text = target.told()
                self.assertEqual(status, 0, text)
                self.assertGreater(target.sent('z0'), 0)
                self.assertEqual(source.sent('z0') + target.sent('z0'), size)
                stats = peer.finish(60)
                target.end()
        self.assertEqual(stats['received'], size)
        self.assertEqual((stats['connects'], stats['resumed']), (2, 0))

    def postcopy(self, options='', *peer_options, shown=False):
        """The guest runs on the target, and its port goes on, while most of
        its memory is missing there; return the target's info and statistics
        of the peer.

        @shown: the source shows its memory to the peer
        """
        size, uri = self.SIZE // 2, f'unix:{self.folder}/migration'
        wanted = [{'capability': 'postcopy-ram', 'state': True}]
        memory = ('-object', 'memory-backend-memfd,id=m,size=256M,share=on')
        machine = 'q35,memory-backend=m'
        with self.guest('zpipe-source', machine=machine, extra=options + (
                            ',share-ram=on,mechanism=map' * shown),
                        args=(*memory[:-1], memory[-1] + ',seal-write=on')
                        ) as source, \
                self.guest('zpipe-target', machine=machine, extra=options,
                           args=(*memory, '-incoming', uri)) as target:
            from qemu.qmp import ExecuteError
            try:
                target.vm.cmd('migrate-set-capabilities', capabilities=wanted)
            except ExecuteError as err:     # the host's kernel has it not
                self.skipTest(str(err))
            source.vm.cmd('migrate-set-capabilities', capabilities=wanted)
            source.vm.cmd('migrate-set-parameters', **{
                'max-bandwidth': MIB, 'max-postcopy-bandwidth': 8 * MIB})
            source.wait_result('ready')
            peer = self.peer(f'{self.folder}/z0', '--reconnect=20',
                             *peer_options, send=(size, 11),
                             receive=(size, 22))
            source.wait_info('z0', lambda x: x['state'] == 'connected',
                             'connected')
            source.tell(f'both z0 {size} 11 {size} 22')
            source.wait_sent('z0', size // 8)
            source.vm.cmd('migrate', uri=uri)
            self.wait_migration(source, 'active')
            source.vm.cmd('migrate-start-postcopy')
            self.wait_migration(source, 'postcopy-active')
            target.wait_info('z0', lambda x: x['state'] == 'connected',
                             'connected')
            with self.assertRaisesRegex(ExecuteError, 'postcopy'):
                target.vm.cmd('chardev-add', id='z1', backend={
                    'type': 'zpipe', 'data': {
                        'path': f'{self.folder}/z1', 'server': True,
                        'share-ram': True}})
            target.wait_sent('z0', 1)
            self.assertEqual(source.vm.cmd('query-migrate')['status'],
                             'postcopy-active')
            source.vm.cmd('migrate-set-parameters',
                          **{'max-postcopy-bandwidth': 0})
            self.wait_migration(source, 'completed')
            status, text = target.told()
            self.assertEqual(status, 0, text)
            info = target.info('z0')
            self.assertEqual(source.sent('z0') + target.sent('z0'), size)
            stats = peer.finish(60)
            target.end()
        self.assertEqual(stats['received'], size)
        self.assertEqual((stats['connects'], stats['resumed']), (2, 0))
        return info, stats

    def wait_migration(self, guest, wanted):
        while True:
            state = guest.vm.cmd('query-migrate')['status']
            if state == wanted:
                return
            self.assertNotEqual(state, 'failed')
            guest.check_time(f'migration {wanted}')
            time.sleep(0.01)

    def test_postcopy(self):
        self.postcopy()

    def test_postcopy_shown(self):
        """The source has shown its memory; the target may not."""
        self.postcopy(shown=True)

    def test_postcopy_cma(self):
        """QEMU reads the peer's memory into pages that are missing, and
        writes it from such."""
        info, stats = self.postcopy(',cma=on', '--cma')
        self.assertTrue(info['cma-read'] and info['cma-write'])
        self.assertGreater(stats['received direct']['bytes'], 0)


if __name__ == '__main__':
    unittest.main()
