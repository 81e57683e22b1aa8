# SPDX-License-Identifier: GPL-2.0-or-later
"""An SD card behind sdhci, driven by qtest, with the host's clock beside it."""
import socket
import subprocess
import time

from callgrind import BenchError

BAR = 0xe0000000
SLOT = 4
BLOCK = 512
TABLE, DATA = 0x300000, 0x200000

TRNS_DMA, TRNS_COUNT, TRNS_MULTI = 0x01, 0x02, 0x20
R1, R2, R1B, WITH_DATA = 0x02, 0x01, 0x03, 0x20
DAT0 = 1 << 20
TRSCMP = 1 << 1
WBUFRDY = 1 << 4
CARD_BYTES = 1 << 26


class Card:
    """A VM without vCPU whose card can be written; a context manager."""

    def __init__(self, build, property_, node):
        ours, theirs = socket.socketpair()
        self._sock = ours
        self._qemu = subprocess.Popen(
            [build / 'qemu-system-x86_64', '-machine', 'pc,accel=qtest',
             '-m', '16', '-nodefaults', '-display', 'none',
             '-chardev', f'socket,id=t,fd={theirs.fileno()}',
             '-qtest', 'chardev:t', '-blockdev', node,
             '-device', f'sdhci-pci,addr={SLOT}{property_}',
             '-device', 'sd-card,drive=disk'],
            pass_fds=(theirs.fileno(),), stderr=subprocess.DEVNULL)
        theirs.close()
        self._answers = ours.makefile('rb')
        self.longest_s = 0

    def __enter__(self):
        try:
            self._init()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        self._qemu.kill()
        self._qemu.wait()
        self._sock.close()

    def _do(self, text):
        """Run a command of qtest; notes the longest time one took."""
        start = time.monotonic()
        self._sock.sendall(text.encode() + b'\n')
        answer = self._answers.readline().split()
        self.longest_s = max(self.longest_s, time.monotonic() - start)
        if answer[:1] != [b'OK']:
            raise BenchError(f'qtest: {text}: {answer}')
        return int(answer[1], 0) if len(answer) > 1 else 0

    def write(self, offset, value):
        self._do(f'writel {BAR + offset:#x} {value:#x}')

    def read(self, offset):
        return self._do(f'readl {BAR + offset:#x}')

    def command(self, number, argument, flags, mode=0):
        self.write(0x08, argument)
        self.write(0x0c, mode | flags << 16 | number << 24)
        return self.read(0x10)

    def _init(self):
        for offset, value in ((0x10, BAR), (0x04, 6)):
            self._do(f'outl 0xcf8 {0x80000000 | SLOT << 11 | offset:#x}')
            self._do(f'outl 0xcfc {value:#x}')
        self.write(0x28, 0x0f00)
        self.write(0x2c, 0x0005)
        self.write(0x34, 0xffffffff)
        self.command(0, 0, 0)
        self.command(8, 0x1aa, R1)
        self.command(55, 0, R1)
        self.command(41, 0x40ff8000, R1)
        self.command(2, 0, R2)
        rca = self.command(3, 0, R1) & 0xffff0000
        self.command(7, rca, R1B)
        if self.command(13, rca, R1) >> 9 & 0xf != 4:
            raise BenchError('the card is not ready')
        # for a while QEMU still starts
        for _ in range(5000):
            self.read(0x24)
        self.longest_s = 0

    def wait(self, bits, pause_s=0):
        """Wait for an interrupt's status bit, as a driver that polls."""
        while not self.read(0x30) & bits:
            time.sleep(pause_s)
        self.write(0x30, 0xffffffff)

    def port_blocks(self, count):
        """Write blocks, a word at a time."""
        self.write(0x04, BLOCK | count << 16)
        self.command(25, 0, R1 | WITH_DATA, TRNS_MULTI | TRNS_COUNT)
        for _ in range(count):
            # two processes that never sleep would measure the scheduler
            self.wait(WBUFRDY, 0.001)
            for _ in range(BLOCK // 4):
                self.write(0x20, 0x5a5a5a5a)
        self.wait(TRSCMP, 0.001)

    def dma_blocks(self, count):
        """Write blocks by one descriptor."""
        self._do(f'writel {TABLE:#x} '
                 f'{(count * BLOCK & 0xffff) << 16 | 0x23:#x}')
        self._do(f'writel {TABLE + 4:#x} {DATA:#x}')
        self.write(0x28, 0x0f10)
        self.write(0x04, BLOCK | count << 16)
        self.write(0x58, TABLE)
        self.command(25, 0, R1 | WITH_DATA,
                     TRNS_DMA | TRNS_MULTI | TRNS_COUNT)
        self.wait(TRSCMP)
        self.command(12, 0, R1)


def longest_access(build, property_, latency_s, blocks):
    """Return the longest access of a guest that writes blocks to a slow card,
    in us: from qtest's command to its answer."""
    node = (f'null-co,node-name=disk,size={CARD_BYTES},'
            f'latency-ns={int(latency_s * 1e9)}')
    with Card(build, property_, node) as card:
        card.port_blocks(blocks)
        return card.longest_s * 1e6


def ready_rate(build, property_, image, transfers):
    """Return MiB per second to a card whose disk is a file."""
    with open(image, 'wb') as file:
        file.truncate(CARD_BYTES)
    node = f'file,node-name=disk,filename={image}'
    with Card(build, property_, node) as card:
        card.dma_blocks(128)
        start = time.monotonic()
        for _ in range(transfers):
            card.dma_blocks(128)
        return transfers * 128 * BLOCK / (time.monotonic() - start) / 2 ** 20
