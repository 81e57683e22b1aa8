# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 while the flash's image is behind what the guest wrote."""
import os
import random
import socket
import subprocess
import tempfile
import unittest
from pathlib import Path

from guest import need_machine_property
from hotpath_paths import qemu_binary

FLASH_SIZE = 4 * 2 ** 20
FLASH_BASE = 2 ** 32 - FLASH_SIZE
WRITES = 400
STRIDE = 1000               # several to a sector, and some across
ROUNDS = 8


class FlashKill(unittest.TestCase):

    def setUp(self):
        need_machine_property('query-block-deadline-ms')
        folder = tempfile.TemporaryDirectory(prefix='hotflash-')
        self.addCleanup(folder.cleanup)
        self.image = Path(folder.name) / 'flash'

    def start(self):
        """Return QEMU and a socket for the commands of qtest."""
        self.image.write_bytes(b'\xff' * FLASH_SIZE)
        ours, theirs = socket.socketpair()
        qemu = subprocess.Popen(
            [qemu_binary(), '-machine', 'pc,accel=qtest,pflash0=flash',
             '-m', '16', '-nodefaults', '-display', 'none',
             '-blockdev', f'file,node-name=flash,filename={self.image}',
             '-global', 'driver=cfi.pflash01,property=write-behind,value=on',
             '-chardev', f'socket,id=t,fd={theirs.fileno()}',
             '-qtest', 'chardev:t', '-qtest-log', '/dev/null'],
            pass_fds=(theirs.fileno(),))
        theirs.close()
        self.addCleanup(qemu.wait)
        self.addCleanup(qemu.kill)
        self.addCleanup(ours.close)
        return qemu, ours

    def test_prefix(self):
        """The image holds the beginning of what the guest wrote: no write is
        there without all that were before it."""
        seed = int(os.environ.get('HOTPATH_SEED', random.randrange(2 ** 32)))
        print(f'HOTPATH_SEED={seed}', end=' ')
        chance = random.Random(seed)
        partial = 0
        for _ in range(ROUNDS):
            qemu, sock = self.start()
            answers = sock.makefile('rb')
            for i in range(chance.randrange(1, WRITES)):
                at = FLASH_BASE + i * STRIDE
                sock.sendall(f'writeb {at:#x} 0x40\n'
                             f'writeb {at:#x} {i & 0x7f:#x}\n'.encode())
                self.assertEqual(answers.readline(), b'OK\n')
                self.assertEqual(answers.readline(), b'OK\n')
            written = i + 1
            qemu.kill()
            qemu.wait()
            data = self.image.read_bytes()
            self.assertEqual(len(data), FLASH_SIZE)
            expected = bytearray(b'\xff' * FLASH_SIZE)
            there = 0
            while there < written and data[there * STRIDE] != 0xff:
                expected[there * STRIDE] = there & 0x7f
                there += 1
            self.assertEqual(data, expected, f'{there} of {written}')
            partial += there < written
        print(f'{partial} of {ROUNDS} images were behind', end=' ')


if __name__ == '__main__':
    unittest.main()
