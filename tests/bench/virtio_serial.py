# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver for virtio-serial over the qtest protocol (legacy PCI interface).

It posts the same descriptors again and again, with two qtest commands for a
batch of 128 elements, so that a measurement sees the device and not the driver.
"""
import struct
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from hotpath_paths import use_qemu_python       # noqa: E402

SLOT, BAR = 4, 0xc000
FEATURES, QUEUE_PFN, QUEUE_SEL, NOTIFY, STATUS = 4, 8, 14, 16, 18
F_MULTIPORT, F_INDIRECT = 1 << 1, 1 << 28
DESC_WRITE, DESC_INDIRECT = 2, 4
CONTROL_IN, CONTROL_OUT, PORT_IN, PORT_OUT = 2, 3, 4, 5
DEVICE_READY, PORT_READY, PORT_OPEN = 0, 3, 6
SIZES = {CONTROL_IN: 32, CONTROL_OUT: 32, PORT_IN: 128, PORT_OUT: 128}
RINGS, TABLES, BUFFERS = 1 << 20, 2 << 20, 16 << 20
LOOK_AFTER_S = 0.001


class Queue:
    """A virtqueue; all its descriptors are posted in turn."""

    def __init__(self, vm, number):
        self.vm, self.number = vm, number
        self.size = SIZES[number]
        self.base = RINGS + number * 0x4000
        self.avail = self.base + 16 * self.size
        self.used = (self.avail + 6 + 2 * self.size + 4095) & ~4095
        self.posted = 0
        vm.out('w', QUEUE_SEL, number)
        vm.out('l', QUEUE_PFN, self.base >> 12)
        vm.write(self.avail + 4, struct.pack(f'<{self.size}H',
                                             *range(self.size)))

    def describe(self, segments, bytes_each, flags):
        """Give every descriptor a table of segments of its own."""
        at, table = BUFFERS, TABLES + self.number * 0x40000
        for i in range(self.size):
            parts = b''
            for n in range(segments):
                more = n + 1 < segments
                parts += struct.pack('<QIHH', at, bytes_each,
                                     flags | more, n + 1 if more else 0)
                at += bytes_each
            self.vm.write(table, parts)
            self.vm.write(self.base + 16 * i,
                          struct.pack('<QIHH', table, len(parts),
                                      DESC_INDIRECT, 0))
            table += len(parts)
        return at - BUFFERS

    def post(self, count):
        """Make the next so many descriptors available."""
        self.posted = (self.posted + count) & 0xffff
        self.vm.write(self.avail + 2, struct.pack('<H', self.posted))
        self.vm.out('w', NOTIFY, self.number)

    def done(self):
        return self.vm.read(self.used + 2, 2) == struct.pack('<H', self.posted)

    def wait(self, limit_s=20):
        """Wait until the device has given all of them back.

        To look is a command, which costs QEMU some microseconds: so not at
        once, but when most devices have done it.
        """
        end = time.monotonic() + limit_s
        while True:
            time.sleep(LOOK_AFTER_S)
            if self.done():
                return
            if time.monotonic() > end:
                raise TimeoutError(f'queue {self.number} makes no progress')

    def lengths(self):
        """Bytes that the device wrote, of the last 'size' elements."""
        ring = self.vm.read(self.used + 4, 8 * self.size)
        return sum(struct.unpack(f'<{2 * self.size}I', ring)[1::2])


class SerialMachine:
    """A QEMU without a processor that runs, with one port on a chardev."""

    def __init__(self, binary, chardev, wrapper=()):
        use_qemu_python()
        from qemu.machine.qtest import QEMUQtestMachine
        self.vm = QEMUQtestMachine(str(binary), wrapper=wrapper,
                                   base_temp_dir='/tmp', qmp_timer=120)
        self.vm.set_machine('pc,memory-backend=m')
        self.vm.add_args(
            # no line in a file for each command
            '-qtest-log', 'none',
            '-nodefaults', '-m', '128M', '-object',
            'memory-backend-memfd,id=m,size=128M,share=on,seal-write=on',
            '-device',
            f'virtio-serial-pci,id=s,addr={SLOT:02x}.0,disable-modern=on,'
            'vectors=0,max_ports=2', '-chardev', chardev, '-device',
            'virtserialport,bus=s.0,nr=1,chardev=c')

    def __enter__(self):
        self.vm.launch()
        for offset, value in ((0x10, BAR), (0x04, 7)):
            self.vm.qtest(f'outl 0xcf8 {0x80000000 | SLOT << 11 | offset:#x}')
            self.vm.qtest(f'outl 0xcfc {value:#x}')
        for status in (0, 1, 3):
            self.out('b', STATUS, status)
        self.out('l', FEATURES, F_MULTIPORT | F_INDIRECT)
        self.queues = {n: Queue(self, n) for n in SIZES}
        self.out('b', STATUS, 7)
        self.open_port()
        return self

    def __exit__(self, *exc):
        self.vm.shutdown(timeout=60)    # valgrind is slow

    def pid(self):
        return self.vm.get_pid()

    def out(self, width, register, value):
        self.vm.qtest(f'out{width} {BAR + register:#x} {value:#x}')

    def write(self, address, data):
        self.vm.qtest(f'write {address:#x} {len(data)} 0x{data.hex()}')

    def read(self, address, size):
        said = self.vm.qtest(f'read {address:#x} {size}')
        return bytes.fromhex(said.split()[1][2:])

    def control(self, event, value, port):
        queue = self.queues[CONTROL_OUT]
        self.write(BUFFERS, struct.pack('<IHH', port, event, value))
        queue.post(1)
        queue.wait()

    def open_port(self):
        """Say what Linux says when a program opens the port."""
        self.queues[CONTROL_IN].describe(1, 64, DESC_WRITE)
        self.queues[CONTROL_IN].post(32)
        self.queues[CONTROL_OUT].describe(1, 8, 0)
        # all elements of the queue carry the same message, from one place
        table = TABLES + CONTROL_OUT * 0x40000
        for i in range(32):
            self.write(table + 16 * i,
                       struct.pack('<QIHH', BUFFERS, 8, 0, 0))
        self.control(DEVICE_READY, 1, 0)
        self.control(PORT_READY, 1, 1)
        self.control(PORT_OPEN, 1, 1)
