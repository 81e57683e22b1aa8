"""Interrupts get back the affinity that they had: QEMU and its helper.

Both look at one simulated host (x-host-root, --x-root); /dev/null stands for
the VFIO group.  No privilege is needed.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import errno
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from collections import namedtuple
from pathlib import Path

from hotpath_paths import qemu_binary, qemu_build, use_qemu_python

VECTORS = 64            # of a device
PATIENCE_S = 60
ORIGINAL = '0-2'
CPU_SELECTOR, CPU_FLAGS, CPU_EJECT = 0xcd8, 0xcdc, 8     # of ICH9's ACPI
HELLO, MOVE, RESTORE = 1, 2, 3
Request = namedtuple('Request', 'op id number cpu list')
# field 39 is the processor
STAT = '1 (CPU) S ' + ' '.join(map(str, range(4, 39))) + ' {} 40 41\n'


def address(device):
    return f'0000:01:00.{device}'


class GiveBack(unittest.TestCase):

    def setUp(self):
        self.root = Path(tempfile.mkdtemp(prefix='irq-back-'))
        self.addCleanup(shutil.rmtree, self.root)
        self.put('sys/devices/system/cpu/possible', '0-3\n')
        self.put('sys/devices/system/cpu/online', '0-3\n')
        self.put('proc/irq/default_smp_affinity', 'f\n')
        group = self.root / 'sys/devices/virtual/vfio/7'
        self.put('sys/devices/virtual/vfio/7/uevent')
        (group / 'subsystem').symlink_to('../../../../class/vfio')
        char = self.root / 'sys/dev/char/1:3'           # /dev/null
        char.parent.mkdir(parents=True)
        char.symlink_to('../../devices/virtual/vfio/7')
        self.socket = str(self.root / 'socket')
        self.helper = self.vm = None
        self.runs = 0

    def put(self, path, text=''):
        """Write a file at once: it may be read meanwhile."""
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(fd, text.encode(), 0)
        os.ftruncate(fd, len(text))
        os.close(fd)

    def add_device(self, device, vectors):
        """Its interrupts are taken on CPU 0; return their numbers."""
        irqs = range(100 * (device + 1), 100 * (device + 1) + vectors)
        self.put(f'sys/kernel/iommu_groups/7/devices/{address(device)}')
        for vector, irq in enumerate(irqs):
            self.put(f'proc/irq/{irq}/smp_affinity_list', ORIGINAL + '\n')
            self.put(f'sys/kernel/irq/{irq}/per_cpu_count', '1,0,0,0\n')
            self.put(f'sys/kernel/irq/{irq}/actions',
                     f'vfio-msix[{vector}]({address(device)})\n')
            self.put(f'sys/bus/pci/devices/{address(device)}/msi_irqs/{irq}')
        return irqs

    def mask(self, irq):
        return (self.root / f'proc/irq/{irq}/smp_affinity_list'
                ).read_text().strip()

    def start_helper(self, *options):
        self.helper = subprocess.Popen(
            [str(qemu_build() / 'qemu-irq-affinity-helper'), *options,
             '--x-root', str(self.root), '--socket', self.socket])
        self.addCleanup(self.helper.wait)
        self.addCleanup(self.helper.kill)
        self.wait(lambda: os.path.exists(self.socket), 'a socket')

    def kill_helper(self):
        self.helper.kill()
        self.helper.wait()
        os.unlink(self.socket)

    def start(self, devices, vectors, *args, more='', helper=True):
        """Start QEMU; return {device: interrupts}."""
        irqs = {d: self.add_device(d, vectors) for d in range(devices)}
        self.vm = self.machine(irqs, *args, more=more, helper=helper)
        self.vm.launch()
        return irqs

    def machine(self, irqs, *args, more='', helper=True):
        use_qemu_python()
        from qemu.machine import QEMUQtestMachine
        vm = QEMUQtestMachine(str(qemu_binary()), name='qemu',
                              base_temp_dir='/tmp', qmp_timer=60)
        self.addCleanup(lambda: vm.shutdown(hard=True))
        vm.add_args('-M', 'q35', '-nodefaults', '-display', 'none')
        vm.add_args('-object', f'irq-affinity,id=a,x-host-root={self.root},'
                    'max-moves-per-s=10000,min-interval-ms=0,'
                    f'sample-interval-ms=1,forward-window-ms=100{more}'
                    + (f',helper={self.socket}' if helper else ''))
        for device in irqs:
            vm.add_args('-device', f'irq-affinity-testdev,id=dev{device},'
                        f'host={address(device)}')
        vm.add_args(*args)
        return vm

    def log(self):
        """End QEMU, return what it said."""
        vm, self.vm = self.vm, None
        vm.shutdown(hard=True)
        return vm.get_log() or ''

    def wait(self, check, what):
        end = time.monotonic() + PATIENCE_S
        while not check():
            if time.monotonic() > end:
                self.fail(f'no {what}: {str(self.vm and self.info())[:3000]}')
            time.sleep(0.01)

    def info(self):
        info, = self.vm.cmd('query-irq-affinity')
        return info

    def set(self, device, name, value):
        self.vm.cmd('qom-set', path=f'/machine/peripheral/dev{device}',
                    property=name, value=value)

    def route(self, irqs, dest):
        for device, numbers in irqs.items():
            for vector in range(len(numbers)):
                self.set(device, 'route',
                         f'{vector}={0xfee00000 | dest << 12:#x}:0x41')

    def run_on(self, cpu):
        """All vCPUs run on @cpu, and may, as QEMU's own thread, on 0-3."""
        self.runs += 1
        pid = self.vm.get_pid()
        threads = [v['thread-id'] for v in self.vm.cmd('query-cpus-fast')]
        for tid in threads:
            self.put(f'proc/self/task/{tid}/stat', STAT.format(cpu))
            self.put(f'proc/self/task/{tid}/schedstat',
                     f'{100000 + self.runs} 0 0\n')
        for tid in threads + [pid]:
            self.put(f'proc/{pid}/task/{tid}/status',
                     'Name:\tqemu\nUid:' + f'\t{os.geteuid()}' * 4 +
                     '\nCpus_allowed_list:\t0-3\n')

    def follow(self, irqs, cpu):
        """Interrupts occur until all have followed the vCPUs to @cpu."""
        for device in irqs:
            self.set(device, 'irq-affinity', 'a')
        self.wait(lambda: self.info().get('helper', True), 'helper')
        count = 1
        end = time.monotonic() + PATIENCE_S
        numbers = [n for ns in irqs.values() for n in ns]
        while {self.mask(n) for n in numbers} != {str(cpu)}:
            self.assertLess(time.monotonic(), end, str(self.info())[:3000])
            count += 1
            for number in numbers:
                self.put(f'sys/kernel/irq/{number}/per_cpu_count',
                         f'{count},0,0,0\n')
            self.run_on(cpu)
        # that they arrived is known to QEMU too
        self.wait(lambda: all(v.get('sent-to') == cpu
                              for v in self.info()['vectors']), 'answers')

    def take_off(self, irqs):
        for device in irqs:
            self.set(device, 'irq-affinity', '')

    def wait_masks(self, irqs, mask):
        self.wait(lambda: {self.mask(n) for ns in irqs.values() for n in ns}
                  == {mask}, f'mask {mask}')

    @contextlib.contextmanager
    def helper_stopped(self):
        """The processes that serve stand still."""
        pid = self.helper.pid
        servers = [int(p) for p in Path(
            f'/proc/{pid}/task/{pid}/children').read_text().split()]
        self.assertTrue(servers)
        for server in servers:
            os.kill(server, signal.SIGSTOP)
        try:
            yield
        finally:
            for server in servers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server, signal.SIGCONT)

    def refused_events(self):
        return [e['data'] for e in self.vm.get_qmp_events(wait=False)
                if e['event'] == 'IRQ_AFFINITY_REFUSED']

    # ------------------------------------------------------------ the tests

    def test_more_than_fit(self):
        """More interrupts than a socket takes requests; all are given back."""
        self.start_helper('--max-moves-per-s=100000')
        irqs = self.start(6, VECTORS)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        # moves that did not fit were refused, and tried again
        before = self.info()['refusals']
        with self.helper_stopped():
            self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)
        self.assertEqual(self.info()['refusals'], before)

    def test_object_deleted(self):
        """Nor does it matter that the object is deleted at once."""
        self.start_helper('--max-moves-per-s=100000')
        irqs = self.start(1, VECTORS)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        with self.helper_stopped():
            self.take_off(irqs)
            self.vm.cmd('object-del', id='a')
        self.wait_masks(irqs, ORIGINAL)

    def test_slow_helper(self):
        """It gives back as many a second as it may move, refusing none."""
        self.start_helper('--max-moves-per-s=40')
        irqs = self.start(1, VECTORS)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        before = self.info()['refusals']
        self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)
        self.assertEqual(self.info()['refusals'], before)

    def test_move_under_way(self):
        """A move whose answer has not come is undone as well."""
        self.start_helper('--max-moves-per-s=100000')
        irqs = self.start(1, 1)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)
        number, = irqs[0]
        self.set(0, 'irq-affinity', 'a')
        self.wait(lambda: self.info()['helper'], 'helper')
        with self.helper_stopped():
            count = 1000
            end = time.monotonic() + PATIENCE_S
            # the look that finds the first ones decides to move
            while not any(v['interrupts'] for v in self.info()['vectors']):
                self.assertLess(time.monotonic(), end, str(self.info())[:3000])
                count += 1
                self.put(f'sys/kernel/irq/{number}/per_cpu_count',
                         f'{count},0,0,0\n')
                self.run_on(3)
                time.sleep(0.01)
            self.assertEqual(self.mask(number), ORIGINAL)
            self.take_off(irqs)
        # moved, and back
        self.wait_masks(irqs, ORIGINAL)

    def test_refused(self):
        """That it is refused is told: event, count, one line."""
        self.put('proc/irq/default_smp_affinity', '7\n')
        self.start_helper('--cpus=3')
        irqs = self.start(1, 2)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        self.assertEqual(self.info()['refusals'], [])
        self.take_off(irqs)
        self.wait(lambda: self.info()['refusals'], 'refusal')
        self.wait(lambda: self.info()['refusals'] ==
                  [{'reason': 'denied', 'count': 2}], 'second refusal')
        told = self.refused_events()
        self.assertEqual(told[0], {
            'id': 'a', 'device': '/machine/peripheral/dev0',
            'irq': irqs[0][0], 'reason': 'denied'})
        self.wait_masks(irqs, '3')
        lines = [line for line in self.log().splitlines()
                 if 'did not get back' in line]
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(f"irq-affinity 'a': IRQ {irqs[0][0]} of "
                      "'/machine/peripheral/dev0' did not get back the "
                      'affinity that it had: ', lines[0])

    def test_no_helper_any_more(self):
        """Nobody is there to give it back: told."""
        self.start_helper()
        irqs = self.start(1, 1)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        self.kill_helper()
        self.wait(lambda: not self.info()['helper'], 'end of the helper')
        self.take_off(irqs)
        self.assertEqual(self.info()['refusals'],
                         [{'reason': 'no-helper', 'count': 1}])
        self.wait_masks(irqs, '3')

    def plug_vcpu(self):
        self.vm.cmd('device_add', **{
            'driver': 'qemu64-x86_64-cpu', 'id': 'cpu1', 'socket-id': 1,
            'core-id': 0, 'thread-id': 0})

    def unplug_vcpu(self):
        """The part of the guest's ACPI is ours."""
        self.vm.qtest(f'outl {CPU_SELECTOR:#x} 0')       # not the old way
        self.vm.cmd('device_del', id='cpu1')
        self.vm.qtest(f'outl {CPU_SELECTOR:#x} 1')
        self.vm.qtest(f'outb {CPU_FLAGS:#x} {CPU_EJECT}')
        self.vm.event_wait('DEVICE_DELETED', timeout=PATIENCE_S)
        self.assertEqual(len(self.vm.cmd('query-cpus-fast')), 1)

    def vcpu_goes(self, helper):
        irqs = self.start(1, 2, '-smp', '1,sockets=2,maxcpus=2',
                          helper=helper)
        self.plug_vcpu()
        self.run_on(3)
        self.route(irqs, 1)
        self.follow(irqs, 3)
        self.assertEqual([v['cpu-index'] for v in self.info()['vcpus']], [1])
        return irqs

    def test_vcpu_goes(self):
        """Interrupts whose vCPU has gone are given back, by QEMU itself."""
        irqs = self.vcpu_goes(False)
        self.unplug_vcpu()
        self.wait_masks(irqs, ORIGINAL)
        info = self.info()
        self.assertEqual(info['vcpus'], [])
        self.assertEqual({v['state'] for v in info['vectors']}, {'no-vcpu'})
        # when it comes back, they follow again
        self.plug_vcpu()
        self.run_on(2)
        self.follow(irqs, 2)
        self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)

    def test_vcpu_goes_helper(self):
        """As before, by the helper."""
        self.start_helper('--max-moves-per-s=100000')
        irqs = self.vcpu_goes(True)
        self.unplug_vcpu()
        self.wait_masks(irqs, ORIGINAL)
        self.plug_vcpu()
        self.run_on(2)
        self.follow(irqs, 2)
        self.assertEqual(self.info()['foreign'], 0)

    def test_helper_dies_giving_back(self):
        """Whether it was done is not known: either is taken for ours."""
        self.start_helper('--max-moves-per-s=100000')
        irqs = self.vcpu_goes(True)
        with self.helper_stopped():
            self.unplug_vcpu()
            # asked for, not answered
            self.wait(lambda: not any('vcpu' in v
                                      for v in self.info()['vectors']),
                      'look at the interrupts')
            self.kill_helper()
        self.wait(lambda: self.info()['refusals'] ==
                  [{'reason': 'no-helper', 'count': 2}], 'refusals')
        first, second = irqs[0]
        self.put(f'proc/irq/{first}/smp_affinity_list', ORIGINAL + '\n')
        self.start_helper('--max-moves-per-s=100000')
        self.wait(lambda: self.info()['helper'], 'helper')
        # the other vCPU gets them
        self.route(irqs, 0)
        self.run_on(2)
        count = 1000
        end = time.monotonic() + PATIENCE_S
        while {self.mask(first), self.mask(second)} != {'2'}:
            self.assertLess(time.monotonic(), end, str(self.info())[:3000])
            count += 1
            for number in first, second:
                self.put(f'sys/kernel/irq/{number}/per_cpu_count',
                         f'{count},0,0,0\n')
            self.run_on(2)
        self.assertEqual(self.info()['foreign'], 0)
        self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)

    def test_owner_gone(self):
        """Taken off when the owner is gone: another thread has to do."""
        self.start_helper('--max-moves-per-s=100000')
        irqs = self.vcpu_goes(True)
        self.kill_helper()
        self.wait(lambda: not self.info()['helper'], 'end of the helper')
        self.unplug_vcpu()
        self.wait(lambda: self.info()['refusals'] ==
                  [{'reason': 'no-helper', 'count': 2}], 'refusals')
        self.wait_masks(irqs, '3')
        self.start_helper()
        self.wait(lambda: self.info()['helper'], 'helper')
        self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)

    def test_helper_is_busy(self):
        """No room to connect: QEMU tries again, and is served in the end."""
        log = self.root / 'trace'
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, \
                contextlib.ExitStack() as stack:
            listener.bind(self.socket)
            listener.listen(0)
            for _ in range(64):
                one = stack.enter_context(socket.socket(
                    socket.AF_UNIX, socket.SOCK_SEQPACKET))
                one.setblocking(False)
                try:
                    one.connect(self.socket)
                except BlockingIOError:
                    break
            else:
                self.fail('there is always room')
            irqs = self.start(1, 1, '-D', str(log),
                              '-trace', 'irq_affinity_helper_busy')
            self.route(irqs, 0)
            self.set(0, 'irq-affinity', 'a')
            self.wait(lambda: log.is_file() and
                      'attempt 2' in log.read_text(), 'second attempt')
            self.vm.cmd('query-status')         # it does not wait there
            listener.settimeout(PATIENCE_S)
            data = b''
            while not data:
                peer, _ = listener.accept()
                with contextlib.closing(peer):
                    peer.settimeout(0 if self.is_ours(peer) else PATIENCE_S)
                    with contextlib.suppress(BlockingIOError):
                        data = peer.recv(512)
            self.assertEqual((len(data), data[:4]),
                             (256, (1).to_bytes(4, sys.byteorder)))

    # ------------------------------------- a helper that this process plays

    def play_helper(self):
        """Listen; answers are given by the test, when it likes."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(listener.close)
        listener.bind(self.socket)
        listener.listen()
        listener.settimeout(PATIENCE_S)
        return listener

    def accept(self, listener):
        peer, _ = listener.accept()
        self.addCleanup(peer.close)
        peer.settimeout(PATIENCE_S)
        hello = self.take(peer)
        self.assertEqual(hello.op, HELLO)
        peer.send(struct.pack('=4I', HELLO, hello.id, 0, 1))
        return peer

    @staticmethod
    def take(peer):
        """Return the next request."""
        data, fds, _, _ = socket.recv_fds(peer, 256, 1)
        for fd in fds:
            os.close(fd)
        fields = struct.unpack('=6I24s208s', data)
        return Request(*fields[:4], fields[7].rstrip(b'\0').decode())

    def take_move(self, peer, cpu):
        request = self.take(peer)
        self.assertEqual((request.op, request.cpu), (MOVE, cpu))
        return request

    def take_restore(self, peer, cpus):
        request = self.take(peer)
        self.assertEqual((request.op, request.list), (RESTORE, cpus))
        return request

    def do(self, request):
        self.put(f'proc/irq/{request.number}/smp_affinity_list',
                 f'{request.cpu if request.op == MOVE else request.list}\n')

    @staticmethod
    def answer(peer, request):
        peer.send(struct.pack('=4I', request.op, request.id, 0, 0))

    def interrupt_until(self, irqs, cpu, check):
        """Interrupts occur on CPU 0, the vCPUs run on @cpu."""
        self.count = getattr(self, 'count', 1)
        end = time.monotonic() + PATIENCE_S
        while not check():
            self.assertLess(time.monotonic(), end, str(self.info())[:3000])
            self.count += 1
            for numbers in irqs.values():
                for number in numbers:
                    self.put(f'sys/kernel/irq/{number}/per_cpu_count',
                             f'{self.count},0,0,0\n')
            self.run_on(cpu)
            time.sleep(0.005)

    def start_played(self, cpu):
        """One interrupt is sent to @cpu: return it and the connection."""
        listener = self.play_helper()
        irqs = self.start(1, 1)
        self.run_on(cpu)
        self.route(irqs, 0)
        self.set(0, 'irq-affinity', 'a')
        peer = self.accept(listener)
        request = self.take_after(irqs, cpu, peer)
        self.do(request)
        self.answer(peer, request)
        self.wait(lambda: self.vector().get('sent-to') == cpu, 'answer')
        return irqs, listener, peer

    def take_after(self, irqs, cpu, peer):
        """Return the move that comes as the vCPU runs on @cpu."""
        self.interrupt_until(irqs, cpu, lambda: self.is_asked(peer))
        return self.take_move(peer, cpu)

    @staticmethod
    def is_asked(peer):
        return bool(select.select([peer], [], [], 0)[0])

    def vector(self):
        return self.info()['vectors'][0]

    def route_to_nobody(self):
        """And wait until it is given back."""
        self.set(0, 'route', f'0={0xfee00000 | 9 << 12:#x}:0x41')

    def test_move_return_move(self):
        """No further move while one and a return are under way."""
        irqs, _, peer = self.start_played(3)
        move = self.take_after(irqs, 2, peer)
        self.route_to_nobody()
        restore = self.take_restore(peer, ORIGINAL)
        self.route(irqs, 0)
        self.wait(lambda: 'vcpu' in self.vector(), 'owner')
        notices = self.info()['vcpus'][0]['notices']
        self.interrupt_until(
            irqs, 1, lambda: self.info()['vcpus'][0]['notices'] > notices)
        moves = self.vector()['moves']
        self.do(move)
        self.answer(peer, move)
        self.wait(lambda: self.vector()['moves'] > moves, 'answer')
        self.assertFalse(self.is_asked(peer), 'another move')
        self.do(restore)
        self.answer(peer, restore)
        # what it gets back is still what it had
        move = self.take_after(irqs, 1, peer)
        self.do(move)
        self.answer(peer, move)
        self.wait(lambda: self.vector().get('sent-to') == 1, 'answer')
        self.take_off(irqs)
        self.do(self.take_restore(peer, ORIGINAL))
        self.assertEqual(self.mask(*irqs[0]), ORIGINAL)

    def test_return_once(self):
        """The guest changes its mind all the time: asked for once."""
        irqs, _, peer = self.start_played(3)
        self.route_to_nobody()
        restore = self.take_restore(peer, ORIGINAL)
        for _ in range(3):
            self.route(irqs, 0)
            self.wait(lambda: 'vcpu' in self.vector(), 'owner')
            self.route_to_nobody()
            self.wait(lambda: 'vcpu' not in self.vector(), 'look')
        self.assertFalse(self.is_asked(peer), 'once more')
        self.do(restore)
        self.answer(peer, restore)
        # and again when it was moved again
        self.route(irqs, 0)
        move = self.take_after(irqs, 2, peer)
        self.do(move)
        self.answer(peer, move)
        self.wait(lambda: self.vector().get('sent-to') == 2, 'answer')
        self.route_to_nobody()
        self.do(self.take_restore(peer, ORIGINAL))
        self.assertEqual(self.mask(*irqs[0]), ORIGINAL)

    def test_taken_up_again(self):
        """Given an object anew before what the last one asked for is done."""
        irqs, _, peer = self.start_played(3)
        self.take_off(irqs)
        restore = self.take_restore(peer, ORIGINAL)
        self.set(0, 'irq-affinity', 'a')    # the mask is 3
        move = self.take_after(irqs, 2, peer)
        self.do(restore)
        self.do(move)
        self.answer(peer, restore)
        self.answer(peer, move)
        self.wait(lambda: self.vector().get('sent-to') == 2, 'answer')
        self.take_off(irqs)
        self.do(self.take_restore(peer, ORIGINAL))

    def test_given_to_another(self):
        """As before, by another object, whose move comes first."""
        irqs, listener, peer = self.start_played(3)
        self.take_off(irqs)
        restore = self.take_restore(peer, ORIGINAL)
        self.vm.cmd('object-add', **{
            'qom-type': 'irq-affinity', 'id': 'b', 'helper': self.socket,
            'x-host-root': str(self.root), 'sample-interval-ms': 1,
            'min-interval-ms': 0})
        self.info = lambda: [i for i in self.vm.cmd('query-irq-affinity')
                             if i['id'] == 'b'][0]
        self.set(0, 'irq-affinity', 'b')
        other = self.accept(listener)
        move = self.take_after(irqs, 2, other)
        self.do(move)
        self.answer(other, move)
        self.wait(lambda: self.vector().get('sent-to') == 2, 'answer')
        self.do(restore)
        self.answer(peer, restore)
        # it is not where it was sent: once more
        move = self.take_after(irqs, 2, other)
        self.do(move)
        self.answer(other, move)
        self.wait(lambda: self.vector()['moves'] == 2, 'answer')
        self.assertEqual(self.info()['foreign'], 0)
        self.take_off(irqs)
        self.take_restore(other, ORIGINAL)

    def test_lost_move_and_return(self):
        """Neither is answered, the first of them was done."""
        irqs, listener, peer = self.start_played(3)
        move = self.take_after(irqs, 2, peer)
        self.route_to_nobody()
        self.take_restore(peer, ORIGINAL)
        self.do(move)
        peer.close()
        peer = self.accept(listener)
        self.route(irqs, 0)
        move = self.take_after(irqs, 1, peer)
        self.do(move)
        self.answer(peer, move)
        self.wait(lambda: self.vector().get('sent-to') == 1, 'answer')
        self.assertEqual(self.info()['foreign'], 0)
        self.take_off(irqs)
        self.take_restore(peer, ORIGINAL)

    # ------------------------------------------------------------------ CPR

    def transfer(self, irqs, memory):
        """To another QEMU, which takes the place of the old one: return that.
        """
        channels = [{'channel-type': name, 'addr': {
            'transport': 'socket', 'type': 'unix',
            'path': str(self.root / name)}} for name in ('main', 'cpr')]
        old, new = self.vm, self.machine(irqs, *memory, helper=False)
        for channel in channels:
            new.add_args('-incoming', json.dumps(channel))
        connect = new._post_launch

        def post_launch():
            # its monitor answers only when it has begun to receive
            self.wait((self.root / 'cpr').exists, 'listener')
            old.cmd('migrate-set-parameters', mode='cpr-transfer')
            old.cmd('migrate', channels=channels)
            connect()
        new._post_launch = post_launch
        new.launch()
        self.wait(lambda: old.cmd('query-migrate').get('status') ==
                  'completed', 'end of the migration')
        self.vm = new
        return old

    def test_cpr_transfer(self):
        """The new QEMU takes for their affinity what the old one left."""
        memory = ('-object', 'memory-backend-memfd,id=m,size=64M,share=on',
                  '-machine', 'memory-backend=m,aux-ram-share=on', '-m', '64M')
        irqs = self.start(1, 2, *memory, helper=False)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        old = self.transfer(irqs, memory)
        self.run_on(2)
        self.route(irqs, 0)
        self.follow(irqs, 2)
        self.assertEqual(self.info()['foreign'], 0)
        old.shutdown(hard=True)
        self.take_off(irqs)
        self.wait_masks(irqs, '3')

    # ------------------------------------------------- QEMU's own shortage

    def set_descriptors(self, more):
        """Let QEMU open @more files, None: as many as it likes."""
        pid = self.vm.get_pid()
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(fd) for fd in os.listdir(f'/proc/{pid}/fd')}
        free = [fd for fd in range(limits[1]) if fd not in used]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (
            limits[1] if more is None else free[more], limits[1]))

    def shortage(self, more):
        irqs = self.start(1, 4, helper=False)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        numbers = [v['irq'] for v in self.info()['vectors']]
        self.set_descriptors(more)
        # that it was looked at shows
        self.set(0, 'route', '3=')
        self.wait(lambda: self.info()['vectors'][3]['state'] == 'no-route',
                  'look')
        self.assertEqual([v.get('irq') for v in self.info()['vectors']],
                         numbers)
        self.assertEqual([v.get('sent-to') for v in self.info()['vectors']],
                         [3] * 4)
        # one that is freed is let go, a new one found when there is room
        first = irqs[0][0]
        for path in (f'proc/irq/{first}/smp_affinity_list',
                     f'sys/kernel/irq/{first}/actions',
                     f'sys/kernel/irq/{first}/per_cpu_count',
                     f'sys/bus/pci/devices/{address(0)}/msi_irqs/{first}'):
            (self.root / path).unlink()
        self.put('proc/irq/90/smp_affinity_list', ORIGINAL + '\n')
        self.put('sys/kernel/irq/90/per_cpu_count', '1,0,0,0\n')
        self.put('sys/kernel/irq/90/actions', f'vfio-msix[0]({address(0)})\n')
        self.put(f'sys/bus/pci/devices/{address(0)}/msi_irqs/90')
        self.set(0, 'route', '2=')
        self.wait(lambda: 'irq' not in self.info()['vectors'][0], 'end')
        self.set_descriptors(None)
        self.wait(lambda: self.info()['vectors'][0].get('irq') == 90, 'IRQ 90')
        self.take_off(irqs)
        self.wait_masks({0: irqs[0][1:]}, ORIGINAL)

    def test_no_descriptor(self):
        """The device's interrupts cannot be listed: they are kept."""
        self.shortage(0)

    def test_one_descriptor(self):
        """They can be listed, but not opened."""
        self.shortage(1)

    # --------------------------------------- what else keeps it from working

    def warnings(self):
        """End QEMU, return what it warned of."""
        return [line for line in self.log().splitlines()
                if 'warning: irq-affinity' in line]

    def test_unreadable(self):
        """Confined, it sees no interrupts: one line says what is missing."""
        irqs = self.start(1, 2, helper=False)
        folder = self.root / f'sys/bus/pci/devices/{address(0)}/msi_irqs'
        folder.rename(folder.with_suffix('.aside'))
        folder.symlink_to(folder)           # not even root can open it
        log = Path(self.vm._qemu_log_path)
        self.run_on(3)
        self.route(irqs, 0)
        self.set(0, 'irq-affinity', 'a')
        self.wait(lambda: str(folder) in log.read_text(), 'line')
        self.assertEqual(self.info()['vectors'], [])
        # when it can, it goes on
        folder.unlink()
        folder.with_suffix('.aside').rename(folder)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)
        line, = self.warnings()
        self.assertRegex(line, "irq-affinity 'a': interrupts stay where they "
                         f"are: '{folder}' cannot be read: .")

    def test_one_unreadable(self):
        """As before, of two of four; one that is followed is kept."""
        irqs = self.start(1, 4, helper=False)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        files = [self.root / f'sys/kernel/irq/{irq}/actions'
                 for irq in irqs[0][:2]]
        for file in files:
            file.rename(file.with_suffix('.aside'))
            file.symlink_to(file)
        self.set(0, 'route', '3=')
        self.wait(lambda: self.info()['vectors'][3]['state'] == 'no-route',
                  'look')
        self.assertEqual([v.get('sent-to') for v in self.info()['vectors']],
                         [3] * 4)
        self.take_off(irqs)
        self.wait_masks(irqs, ORIGINAL)
        line, = self.warnings()
        self.assertIn(f"'{files[0]}' cannot be read: ", line)

    def test_thread_unreadable(self):
        """The files of a vCPU's thread cannot be opened: one line as well."""
        irqs = self.start(1, 1, helper=False)
        thread = self.vm.cmd('query-cpus-fast')[0]['thread-id']
        self.route(irqs, 0)
        self.set(0, 'irq-affinity', 'a')
        log = Path(self.vm._qemu_log_path)
        self.wait(lambda: 'cannot be opened' in log.read_text(), 'line')
        self.run_on(3)
        self.follow(irqs, 3)
        line, = self.warnings()
        self.assertIn("irq-affinity 'a': interrupts stay where they are: "
                      f"'stat' of thread {thread}, vCPU 0, ", line)

    def test_no_socket(self):
        """There is no connection to a helper: one line says why."""
        irqs = self.start(1, 2)
        self.run_on(3)
        self.route(irqs, 0)
        self.set(0, 'irq-affinity', 'a')
        self.interrupt_until(irqs, 3, lambda: self.info()['refusals'])
        line, = self.warnings()
        self.assertIn("there is no connection to the helper at "
                      f"'{self.socket}': {os.strerror(errno.ENOENT)}; it is "
                      'tried again', line)

    def test_somebody_else(self):
        """With irqbalance all would be left alone: one line says so."""
        irqs = self.start(1, 2, helper=False)
        self.run_on(3)
        self.route(irqs, 0)
        self.follow(irqs, 3)
        for irq in irqs[0]:
            self.put(f'proc/irq/{irq}/smp_affinity_list', '1\n')
        # seen when asked for, noticed when they are to be moved
        self.assertEqual([v['state'] for v in self.info()['vectors']],
                         ['stood-down'] * 2)
        self.interrupt_until(irqs, 2, lambda: self.info()['foreign'] == 2)
        self.wait_masks(irqs, '1')
        line, = self.warnings()
        self.assertRegex(line, "irq-affinity 'a': IRQ 10[01] of '/machine/"
                         "peripheral/dev0' stays where it is: somebody else, "
                         'perhaps irqbalance,')

    def test_other_namespace(self):
        """A helper to which QEMU's threads have other numbers: told once."""
        self.start_helper()
        irqs = self.start(1, 1)
        pid = self.vm.get_pid()
        self.put(f'proc/{pid}/task/{pid}/status',
                 f'Name:\tqemu\nNSpid:\t{pid}\t1\n')
        self.route(irqs, 0)
        self.set(0, 'irq-affinity', 'a')
        log = Path(self.vm._qemu_log_path)
        self.wait(lambda: 'PID namespace' in log.read_text(), 'message')
        self.assertFalse(self.info()['helper'])
        # as soon as it is in the same one it is served
        self.put(f'proc/{pid}/task/{pid}/status',
                 f'Name:\tqemu\nNSpid:\t{pid}\n')
        self.wait(lambda: self.info()['helper'], 'helper')
        self.assertEqual(self.log().count('PID namespace'), 1)

    @staticmethod
    def is_ours(peer):
        creds = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.unpack('3i', creds)[0] == os.getpid()


if __name__ == '__main__':
    unittest.main()
