# SPDX-License-Identifier: GPL-2.0-or-later
"""What is behind a window fails: the VM stops, or is told, and QEMU goes on."""
import os
import subprocess
import unittest
from pathlib import Path

from guest import is_base_build
from hotpath_paths import report_dir
from ondemand_guest import MIB, make_file
from ondemand_vm import WINDOW, WindowVm, preloaded
from storage_vm import Loop, Tmpfs, need_root, run

KIB = 1024
ALL_ONES = 0xffffffffffffffff
# 16 chunks of 64 KiB
POLICY = 'granule=4k,chunks=16,threshold='
CHUNK = 64 * KIB
NEVER = '1000000000'


class Storage(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no ondemand-mem-pci')
        self.name = self.id().rsplit('.', 1)[1].replace('_', '-')
        self.folder = report_dir('guest', self.name)

    def make_file(self):
        path = make_file(self.folder, MIB)
        self.addCleanup(path.unlink)
        return path

    def file_vm(self, policy, path, more=''):
        return WindowVm(self.name, POLICY + policy, f'file={path}{more}')

    def memory_vm(self, policy, path, more='', size=MIB, **backend):
        options = ''.join(f',{k}={v}' for k, v in backend.items())
        return WindowVm(self.name, POLICY + policy, f'memdev=ram{more}', args=(
            '-object', f'memory-backend-file,id=ram,mem-path={path},'
            f'size={size}{options}'))

    def event(self, vm):
        found = vm.vm.event_wait('ONDEMAND_MAP_ERROR', timeout=20)
        self.assertIsNotNone(found, 'no event')
        return found['data']

    def status(self, vm):
        return vm.cmd('query-status')['status']

    # A dump fills a chunk while a thread, that fills it too, fails

    def dump(self, vm):
        vm.cmd('dump-guest-memory', paging=False,
               protocol=f'file:{self.folder / "dump"}')
        (self.folder / 'dump').unlink()

    def test_dump_beside_failing_fill(self):
        path, flag = self.make_file(), self.folder / 'flag'
        with preloaded('failing_read', FAILING_READ=str(flag)), \
                self.file_vm('2', path) as vm:
            vm.set_bars(True)
            for _ in range(3):
                vm.read(WINDOW)
            flag.touch()
            vm.read(WINDOW)             # hot now; its first granule is there
            vm.wait(lambda: not flag.exists(), 'the chunk is being filled')
            self.dump(vm)
            for _ in range(2):
                self.assertEqual(vm.states()[0], 'mapped')
                self.dump(vm)
            self.assertEqual(vm.counters()['refused-backing'], 0)
            self.assertEqual(vm.read_bytes(WINDOW, MIB), path.read_bytes())

    def test_two_devices(self):
        """The rate of the event is limited for each device by itself."""
        path = self.make_file()
        with WindowVm(self.name, POLICY + NEVER,
                      f'file={path},rerror=report', devices=2) as vm:
            vm.set_bars(True)
            os.truncate(path, 0)
            for n in range(2):
                self.assertEqual(vm.read(WINDOW + n * MIB), ALL_ONES)
            self.assertEqual([self.event(vm)['name'] for _ in range(2)],
                             [f'/machine/peripheral/mem{n}' for n in range(2)])

    # Storage that runs out behind a memory backend

    def full_tmpfs(self):
        """Return a file of a MiB that will find room for half of it."""
        need_root()
        storage = Tmpfs(MIB // 2)
        self.addCleanup(storage.close)
        return storage

    def write_until_full(self, vm):
        """Write to each granule; return the first whose write is lost."""
        for at in range(0, MIB, 4 * KIB):
            vm.write(WINDOW + at, at + 1)
            if vm.read(WINDOW + at) == ALL_ONES:
                return at
            self.assertEqual(vm.read(WINDOW + at), at + 1)
        raise AssertionError('there is room for all')

    def check_goes_on(self, vm, full, grow):
        """What is there is used on; what is not comes when there is room."""
        for at in range(0, full, 4 * KIB):
            self.assertEqual(vm.read(WINDOW + at), at + 1)
        grow()
        self.assertEqual(vm.read(WINDOW + full), 0)
        for at in range(0, MIB, 4 * KIB):
            vm.write(WINDOW + at, at + 2)
        for at in range(0, MIB, 4 * KIB):
            self.assertEqual(vm.read(WINDOW + at), at + 2)

    def test_no_space_report(self):
        storage = self.full_tmpfs()
        with self.memory_vm(NEVER, storage.dir / 'memory', ',rerror=report',
                            share='on', reserve='off') as vm:
            vm.set_bars(True)
            full = self.write_until_full(vm)
            found = self.event(vm)
            self.assertEqual((found['action'], found['offset']),
                             ('report', full))
            self.assertEqual(self.status(vm), 'running')
            self.check_goes_on(vm, full, lambda: storage.grow(MIB))
            self.assertEqual(vm.counters()['maps'], 0)

    def test_no_space_stop(self):
        storage = self.full_tmpfs()
        with self.memory_vm(NEVER, storage.dir / 'memory', share='on') as vm:
            vm.set_bars(True)
            full = self.write_until_full(vm)
            self.assertEqual(self.event(vm)['action'], 'stop')
            vm.wait(lambda: self.status(vm) == 'io-error', 'the VM stops')
            storage.grow(MIB)
            vm.cmd('cont')
            self.assertEqual(self.status(vm), 'running')
            self.check_goes_on(vm, full, lambda: None)

    def test_no_space_mapping(self):
        """Chunks that cannot be filled trap, and are tried again later."""
        storage = self.full_tmpfs()
        with self.memory_vm('2', storage.dir / 'memory', ',rerror=report',
                            share='on') as vm:
            vm.set_bars(True)
            for chunk in range(16):
                for _ in range(4):
                    vm.read(WINDOW + chunk * CHUNK)
                vm.wait(lambda n=chunk: vm.states()[n] in
                        ('mapped', 'refused backing'), 'it is decided')
            self.assertEqual(self.event(vm)['action'], 'report')
            self.assertIn('mapped', vm.states())
            self.assertEqual(vm.states()[15], 'refused backing')
            self.assertEqual(self.status(vm), 'running')
            storage.grow(MIB)

            def last_is_mapped():
                for _ in range(4):
                    vm.read(WINDOW + 15 * CHUNK)
                return vm.states()[15] == 'mapped'
            vm.wait(last_is_mapped, 'the last chunk is mapped')

    def small_file_system(self):
        """Return where a file system of some MiB is mounted, with a file."""
        need_root()
        disk = Loop(8 * MIB)
        self.addCleanup(disk.close)
        try:
            run('mkfs.ext4', '-q', '-F', '-m', '0', disk.path)
        except FileNotFoundError:
            self.skipTest('no mkfs.ext4: install e2fsprogs')
        where = disk.dir / 'mounted'
        where.mkdir()
        self.addCleanup(where.rmdir)
        try:
            run('mount', disk.path, where)
        except subprocess.CalledProcessError as error:
            self.skipTest(f'ext4 cannot be mounted: {error.output.strip()}')
        self.addCleanup(run, 'umount', where)
        return where

    def test_no_space_for_holes(self):
        """A page that can be read has no room to be written."""
        where = self.small_file_system()
        with open(where / 'memory', 'wb') as f:
            f.truncate(MIB)
        with open(where / 'fill', 'wb', buffering=0) as f:
            with self.assertRaises(OSError):
                while True:
                    f.write(bytes(4 * KIB))
                    os.fsync(f)

        def make_room():
            (where / 'fill').unlink()
            run('sync', '-f', where)
        with self.memory_vm(NEVER, where / 'memory', ',rerror=report',
                            share='on') as vm:
            vm.set_bars(True)
            vm.read(WINDOW)
            full = self.write_until_full(vm)
            self.assertEqual(self.event(vm)['action'], 'report')
            self.check_goes_on(vm, full, make_room)

    # Storage that cannot be read

    def test_read_error(self):
        """The kernel reports an error of the device."""
        need_root()
        disk = Loop(MIB)
        self.addCleanup(disk.close)
        disk.file.write_bytes(self.make_file().read_bytes())
        whole = disk.file.read_bytes()
        with self.file_vm('2', disk.path, ',rerror=report') as vm:
            vm.set_bars(True)
            os.truncate(disk.file, MIB // 2)
            at = MIB - CHUNK
            for _ in range(100):
                self.assertEqual(vm.read(WINDOW + at), ALL_ONES)
                vm.write(WINDOW + at, 5)
            found = self.event(vm)
            self.assertEqual((found['action'], found['reason']),
                             ('report', 'Input/output error'))
            vm.wait(lambda: vm.states()[15] == 'refused backing',
                    'the chunk is refused')
            self.assertEqual(vm.read_bytes(WINDOW, MIB // 2),
                             whole[:MIB // 2])
            self.assertEqual(self.status(vm), 'running')
            disk.file.write_bytes(whole)
            self.assertEqual(vm.read_bytes(WINDOW, MIB), whole)

    # What a window takes of the host's memory

    def held(self, vm, size):
        """Return what the host holds of the RAM that has this size."""
        found = None
        smaps = Path(f'/proc/{vm.vm.get_pid()}/smaps').read_text()
        for line in smaps.splitlines():
            words = line.split()
            if '-' in words[0]:
                low, high = (int(x, 16) for x in words[0].split('-'))
            elif words[0] == 'Rss:' and high - low == size:
                found = int(words[1]) * KIB
        self.assertIsNotNone(found, 'there is no RAM of that size')
        return found

    def test_granules_take_their_size(self):
        """A granule is not a huge page."""
        huge = Path('/sys/kernel/mm/transparent_hugepage/enabled')
        if not huge.is_file() or '[never]' in huge.read_text():
            self.skipTest('the host gives no huge pages')
        path, size = self.make_file(), 66 * MIB
        os.truncate(path, size)
        with self.file_vm(NEVER, path) as vm:
            vm.set_bars(True)
            for at in range(0, size, 2 * MIB):
                vm.read(WINDOW + at)
            self.assertEqual(vm.counters()['resident-bytes'], 33 * 4 * KIB)
            # a granule is written from a buffer: no page around it is touched
            self.assertLessEqual(self.held(vm, size), 33 * 4 * KIB)


if __name__ == '__main__':
    unittest.main()
