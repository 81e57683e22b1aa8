"""qemu-irq-affinity-helper: requests of a peer that closes at once.

The helper runs on a simulated host (--x-root); no privilege is needed.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from hotpath_paths import qemu_build

DEVICE = '0000:01:00.0'
HELLO, RESTORE = 1, 3
IRQS = range(40, 56)
PATIENCE_S = 10


def request(op, number, cpus=''):
    """One request, as in irq-affinity-proto.h."""
    return struct.pack('=6I24s208s', op, number, number, 0, os.getpid(), 0,
                       DEVICE.encode(), cpus.encode())


class LastWords(unittest.TestCase):
    """A device's interrupts are given back, and the connection is closed."""

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
        helper = subprocess.Popen(
            [str(qemu_build() / 'qemu-irq-affinity-helper'),
             '--x-root', str(self.root), '--socket', self.path])
        self.addCleanup(helper.wait)
        self.addCleanup(helper.terminate)

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
                return peer
            except OSError:
                peer.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

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


if __name__ == '__main__':
    unittest.main()
