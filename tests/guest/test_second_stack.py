# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest goes on while a reader, or a file server, does not."""
import os
import tempfile
import threading
import time
import unittest
from pathlib import Path

from bare_metal import BareGuest, build_image, kvm_probe
from guest import hotpath_counters, need_machine_property
from hotpath_paths import qemu_binary

COUNT = 20000               # far more than a socket holds, less than a FIFO
TICKS = 1000
POSTED = ('-global', 'isa-debugcon.posted-writes=on')
TIMEOUT_S = 60


def wait_for(condition, what):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f'{what}: not within {TIMEOUT_S} s')
        time.sleep(0.01)


def read_exactly(conn, count):
    data = b''
    conn.settimeout(TIMEOUT_S)
    while len(data) < count:
        more = conn.recv(65536)
        if not more:
            break
        data += more
    return data


class Ticks(threading.Thread):
    """Reads what a guest writes, so that it need not wait; counts it."""

    def __init__(self, conn):
        super().__init__(daemon=True)
        self.conn, self.count = conn, 0
        conn.settimeout(None)
        self.start()

    def run(self):
        try:
            while data := self.conn.recv(65536):
                self.count += len(data)
        except OSError:         # closed at the end of the test
            pass


class PostedWrites(unittest.TestCase):

    def setUp(self):
        need_machine_property('query-block-deadline-ms')

    def check_sequence(self, accel, smp=1):
        """The guest ends although nobody reads; then all is there, in order."""
        image = build_image('sequence', {'COUNT': COUNT})
        with BareGuest(f'posted-{accel.replace(",", "-")}', image, accel=accel,
                       smp=smp, args=POSTED) as guest:
            def written():
                counters = hotpath_counters(guest.vm, 'vm')
                return (counters['async-call-chardev-inlined']
                        + counters['async-call-chardev-parked']) >= COUNT
            wait_for(written, 'the guest has written all')
            counters = hotpath_counters(guest.vm, 'vm')
            self.assertGreater(counters['async-call-chardev-parked'], 0)
            self.assertEqual(counters['async-call-chardev-refused'], 0)
            data = read_exactly(guest._conn, COUNT)
        self.assertEqual(data, bytes((COUNT - i) & 0xff
                                     for i in range(COUNT)))

    def test_tcg_multi(self):
        self.check_sequence('tcg,thread=multi', smp=2)

    def test_tcg_single(self):
        self.check_sequence('tcg,thread=single', smp=2)

    def test_kvm(self):
        state, why = kvm_probe()
        if state != 'works':
            self.skipTest(f'KVM not used: {why}')
        self.check_sequence('kvm')


class QueryBlock(unittest.TestCase):

    def setUp(self):
        need_machine_property('query-block-deadline-ms')
        self.shim = (Path(qemu_binary()).parent / 'tests' / 'qtest'
                     / 'libslow-fstat.so')
        if not self.shim.exists():
            self.skipTest(f'{self.shim} is not built')

    def check_goes_on(self, accel, work):
        with tempfile.TemporaryDirectory() as folder:
            gate = Path(folder) / 'gate'
            disk = Path(folder) / 'disk.slow'
            disk.write_bytes(b'x' * 65536)
            os.environ.update(LD_PRELOAD=str(self.shim), SLOW_FSTAT=str(gate))
            guest = BareGuest(
                f'query-block-{accel}', build_image('tick', {'WORK': work}),
                accel=accel, machine='q35,query-block-deadline-ms=3600000',
                args=POSTED + ('-blockdev',
                               f'file,node-name=disk,filename={disk}'),
                devices=('virtio-blk,drive=disk',))
            try:
                with guest:
                    del os.environ['LD_PRELOAD']
                    self.ask_and_tick(guest, gate)
            finally:
                os.environ.pop('LD_PRELOAD', None)
                os.environ.pop('SLOW_FSTAT', None)

    def ask_and_tick(self, guest, gate):
        answer = []
        ticks = Ticks(guest._conn)
        gate.touch()
        query = threading.Thread(
            target=lambda: answer.extend(guest.vm.cmd('query-block')))
        query.start()
        try:
            wait_for(Path(f'{gate}.waiting').exists, 'fstat() is called')
            start = ticks.count
            wait_for(lambda: ticks.count >= start + TICKS, 'the guest goes on')
            self.assertFalse(answer)
        finally:
            gate.unlink()
            query.join(TIMEOUT_S)
        self.assertEqual(answer[0]['inserted']['image']['actual-size'], 65536)

    def test_tcg(self):
        self.check_goes_on('tcg', 20000)

    def test_kvm(self):
        state, why = kvm_probe()
        if state != 'works':
            self.skipTest(f'KVM not used: {why}')
        self.check_goes_on('kvm', 1000)


if __name__ == '__main__':
    unittest.main()
