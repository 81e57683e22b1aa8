# SPDX-License-Identifier: GPL-2.0-or-later
"""What is behind a window fails: the VM stops, or is told, and QEMU goes on."""
import os
import threading
import unittest

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
            for _ in range(2):
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


if __name__ == '__main__':
    unittest.main()
