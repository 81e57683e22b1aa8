# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage that runs out, and virtual machines without a guest that fill it.

The disk is a qcow2 image on a size-limited tmpfs or on a loop device; the
"guest" is this process, which drives the machine's IDE controller through
qtest.  Everything that the machine was told to write is kept, and compared
with what the image holds in the end.
"""
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from guest import is_base_build
from hotpath_paths import qemu_binary, use_qemu_python

KIB = 1024
MIB = 1024 * KIB
SECTOR = 512
CLUSTER_SECTORS = 128           # one cluster of qcow2
DISK_BYTES = 64 * MIB
WAIT_S = 60
DISK = 'ide-hd,drive=disk,bus=ide.0,id=disk0'

ATA_BUSY, ATA_DRQ = 0x80, 0x08


def need_root():
    """Skip where nothing can be mounted."""
    if is_base_build():
        raise unittest.SkipTest('the unpatched base has no space-guard')
    if os.geteuid():
        raise unittest.SkipTest('mounting and loop devices need root')


def run(*command):
    """Run a program, return what it printed."""
    return subprocess.run([str(x) for x in command], check=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT).stdout


class Tmpfs:
    """A file system with a size."""
    driver = 'file'

    def __init__(self, size):
        self.dir = Path(tempfile.mkdtemp(prefix='hotspace-', dir='/tmp'))
        try:
            run('mount', '-t', 'tmpfs', '-o', f'size={size}', 'hotspace',
                self.dir)
        except subprocess.CalledProcessError as error:
            self.dir.rmdir()
            raise unittest.SkipTest('no tmpfs can be mounted here: '
                                    f'{error.output.strip()}') from error
        self.path = self.dir / 'disk.qcow2'
        self.size = size

    def grow(self, by):
        """Make it larger, by so many bytes."""
        self.size += by
        run('mount', '-o', f'remount,size={self.size}', self.dir)

    def fill(self):
        """Take all the space that is left."""
        with open(self.dir / 'ballast', 'wb', 0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def close(self):
        """Take it away."""
        run('umount', '-l', self.dir)
        self.dir.rmdir()


class Loop:
    """A loop device."""
    driver = 'host_device'

    def __init__(self, size):
        self.dir = Path(tempfile.mkdtemp(prefix='hotspace-', dir='/var/tmp'))
        self.file = self.dir / 'backing'
        self.size = size
        with open(self.file, 'wb') as file:
            file.truncate(size)
        try:
            self.path = run('losetup', '-f', '--show', self.file).strip()
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            self.file.unlink()
            self.dir.rmdir()
            raise unittest.SkipTest('no loop device can be set up here: '
                                    f'{error}') from error

    def grow(self, by):
        """Make it larger, by so many bytes."""
        self.size += by
        os.truncate(self.file, self.size)
        run('losetup', '-c', self.path)

    def close(self):
        """Take it away."""
        run('losetup', '-d', self.path)
        self.file.unlink()
        self.dir.rmdir()


def guarded(storage, which='', **options):
    """-blockdev arguments: qcow2 over a guard over the storage."""
    guard = ''.join(f',{key.replace("_", "-")}={value}'
                    for key, value in options.items())
    return ('-blockdev', f'driver={storage.driver},node-name=data{which},'
            f'filename={storage.path},cache.direct=off',
            '-blockdev', f'driver=space-guard,node-name=guard{which},'
            f'file=data{which}{guard}',
            '-blockdev',
            f'driver=qcow2,node-name=disk{which},file=guard{which}')


class StorageVm:
    """A machine with an IDE disk, driven through qtest."""

    def __init__(self, name, args, device=DISK):
        use_qemu_python()
        from qemu.machine import QEMUQtestMachine
        self.vm = QEMUQtestMachine(str(qemu_binary()), name=f'st-{name}',
                                   base_temp_dir='/tmp', qmp_timer=60)
        self.vm.add_args('-machine', 'pc', '-nodefaults', '-nographic', *args)
        if device:
            self.vm.add_args('-device', device)
        self.written = {}
        self.issued = 0         # writes that are to succeed
        self.port = 0x1f0       # of the channel that is driven

    def __enter__(self):
        self.vm.launch()
        return self

    def __exit__(self, *exc):
        if self.vm.is_running():
            self.vm.shutdown(hard=True)

    def cmd(self, *args, **kwargs):
        """Execute a QMP command."""
        return self.vm.cmd(*args, **kwargs)

    def try_cmd(self, *args, **kwargs):
        """Execute a QMP command; return whether it worked."""
        from qemu.qmp.qmp_client import ExecuteError
        try:
            self.cmd(*args, **kwargs)
        except ExecuteError:
            return False
        return True

    def out(self, size, port, value):
        """Write to a port of the machine."""
        self.vm.qtest(f'out{size} {port:#x} {value:#x}')

    def status(self):
        """Read the status of the drive, without side effects."""
        return int(self.vm.qtest(f'inb {self.port + 0x206:#x}').split()[1],
                   16)

    def start_write(self, sector, byte):
        """Begin to write a sector full of a byte."""
        self.wait(lambda: not self.status() & (ATA_BUSY | ATA_DRQ),
                  'the drive is ready')
        self.out('b', self.port + 6, 0xe0 | sector >> 24)
        self.out('b', self.port + 2, 1)
        for i in range(3):
            self.out('b', self.port + 3 + i, sector >> 8 * i & 0xff)
        self.out('b', self.port + 7, 0x30)
        self.wait(lambda: self.status() & ATA_DRQ, 'the drive takes data')
        for _ in range(SECTOR // 4):
            self.out('l', self.port, byte * 0x01010101)
        self.written[sector] = byte
        self.issued += 1

    def forget(self):
        """The last write never happens: the machine was reset."""
        self.written.popitem()
        self.issued -= 1

    def take_over(self, source):
        """Be the machine that a source was migrated to, with one write."""
        self.written, self.issued = source.written, 1

    def idle(self):
        """Whether all writes have succeeded.

        The drive does not tell: when a write stops the machine, it is not
        busy, and becomes so again some time after the machine runs.
        """
        for disk in self.cmd('query-blockstats'):
            if disk.get('qdev') == 'disk0':
                return disk['stats']['wr_operations'] >= self.issued
        raise AssertionError('there is no disk0')

    def fill(self, first=0, limit=5000):
        """Write one sector per cluster until one finds no space.

        Returns the number of the next cluster to write.
        """
        for i in range(first, limit):
            self.start_write(i * CLUSTER_SECTORS, i % 255 + 1)
            end = time.monotonic() + WAIT_S
            while not self.idle():
                if any(r['cause'] == 'write' for r in self.requests()):
                    return i + 1
                if time.monotonic() > end:
                    raise AssertionError('a write hangs without a request')
        raise AssertionError('the storage does not fill up')

    def requests(self):
        """What storage is requested."""
        return self.cmd('query-block-space-requests')

    def request(self):
        """The only request."""
        self.wait(self.requests, 'storage is requested')
        request, = self.requests()
        return request

    def resolve(self, result='grown'):
        """Answer the only request."""
        return self.cmd('block-space-resolve', id=self.request()['id'],
                        result=result)['outcome']

    def state(self):
        """The state of the machine."""
        return self.cmd('query-status')['status']

    def wait(self, until, what):
        """Wait until a condition holds."""
        end = time.monotonic() + WAIT_S
        while not until():
            if time.monotonic() > end:
                raise AssertionError(f'it does not happen that {what}; state '
                                     f'{self.state()}, {self.requests()}')
            time.sleep(0.005)

    def wait_state(self, state):
        """Wait until the machine is in a state."""
        self.wait(lambda: self.state() == state, f'the state is {state}')

    def wait_written(self):
        """Wait until the last write has succeeded."""
        self.wait(self.idle, 'the write succeeds')

    def stats(self):
        """The statistics of storage growth."""
        from guest import hotpath_counters
        return {key[len('storage-'):]: value for key, value
                in hotpath_counters(self.vm, 'vm').items()
                if key.startswith('storage-')}


def make_image(storage):
    """Make an empty qcow2 image on the storage."""
    run(qemu_binary('qemu-img'), 'create', '-q', '-f', 'qcow2', storage.path,
        str(DISK_BYTES))


def check_image(test, storage, written):
    """Compare an image that nobody uses with what was written."""
    raw = Path(tempfile.mkstemp(dir='/var/tmp', prefix='hotspace-')[1])
    try:
        run(qemu_binary('qemu-img'), 'check', '-q', '-f', 'qcow2',
            storage.path)
        run(qemu_binary('qemu-img'), 'convert', '-f', 'qcow2', '-O', 'raw',
            storage.path, raw)
        with open(raw, 'rb') as file:
            for sector, byte in written.items():
                file.seek(sector * SECTOR)
                test.assertEqual(file.read(SECTOR), bytes([byte]) * SECTOR,
                                 f'sector {sector}')
    finally:
        raw.unlink()
