# SPDX-License-Identifier: GPL-2.0-or-later
"""On-demand mapping beside other parts of QEMU: what works, what is refused."""
import json
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

from bare_metal import run_bare
from guest import hotpath_counters, is_base_build
from hotpath_paths import qemu_binary, report_dir, use_qemu_python
from ondemand_guest import MIB, make_file
from ondemand_vm import WINDOW, WindowVm

KIB = 1024
CHUNK = 64 * KIB
GRANULE = 4 * KIB
POLICY = 'granule=4k,chunks=16,threshold=2'


class Beside(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no ondemand-mem-pci')
        self.name = 'beside-' + self.id().rsplit('.', 1)[1][5:]
        self.folder = report_dir('guest', self.name)
        self.path = make_file(self.folder, MIB)
        self.addCleanup(self.path.unlink)
        tmp = tempfile.TemporaryDirectory(prefix='hotod-', dir='/tmp')
        self.addCleanup(tmp.cleanup)
        self.tmp = Path(tmp.name)

    def window_vm(self, name='', policy=POLICY, window=None, args=(), **more):
        return WindowVm(self.name + name, policy,
                        window or f'file={self.path}', args=args, **more)

    # Record and replay

    def record(self, *args):
        return ('-machine', 'pc', '-nodefaults', '-display', 'none', '-icount',
                f'shift=5,rr=record,rrfile={self.tmp / "replay"}', *args)

    def test_replay(self):
        """When something is mapped depends on the host's clock."""
        done = subprocess.run(
            [str(qemu_binary()), *self.record(
                '-object', f'ondemand-policy,id=pol,{POLICY}')],
            stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=20)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn('Record/replay is not supported with ondemand-policy',
                      done.stdout)

    def test_replay_later(self):
        use_qemu_python()
        from qemu.machine import QEMUMachine
        from qemu.qmp import ExecuteError
        vm = QEMUMachine(str(qemu_binary()), base_temp_dir='/tmp')
        vm.add_args(*self.record('-S'))
        vm.launch()
        self.addCleanup(vm.shutdown, hard=True)
        with self.assertRaisesRegex(ExecuteError, 'Record/replay'):
            vm.cmd('object-add', **{'qom-type': 'ondemand-policy',
                                    'id': 'pol'})

    # vhost

    def vhost_server(self, name):
        """Start a server of a disk; return the arguments for a device."""
        image, path = self.tmp / f'{name}.img', self.tmp / f'{name}.sock'
        image.write_bytes(bytes(MIB))
        server = subprocess.Popen(
            [str(qemu_binary('storage-daemon/qemu-storage-daemon')),
             '--blockdev', f'driver=file,node-name=disk,filename={image}',
             '--export', 'type=vhost-user-blk,id=export,node-name=disk,'
             f'addr.type=unix,addr.path={path},writable=on'],
            stdin=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        end = time.monotonic() + 20
        while not path.exists():
            self.assertIsNone(server.poll(), 'the server ended')
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)
        return path

    def touch(self, vm, chunk):
        for _ in range(5):
            vm.read(WINDOW + chunk * CHUNK)

    def test_vhost(self):
        """Nothing more is mapped while it is there; what is mapped stays."""
        path = self.vhost_server('vhost')
        memory = ('-object', 'memory-backend-memfd,id=ram0,size=64M,share=on',
                  '-machine', 'memory-backend=ram0', '-chardev',
                  f'socket,id=vhost,path={path}')
        with self.window_vm(args=memory) as vm:
            vm.set_bars(True)
            self.touch(vm, 0)
            vm.wait(lambda: vm.states()[0] == 'mapped', 'it is mapped')
            vm.cmd('device_add', driver='vhost-user-blk-pci', id='vhost0',
                   chardev='vhost', addr='9.0')
            self.touch(vm, 1)
            vm.wait(lambda: vm.states()[1] == 'refused vhost', 'it is refused')
            self.assertEqual(vm.states()[0], 'mapped')
            self.assertEqual(vm.read_bytes(WINDOW, MIB),
                             self.path.read_bytes())

    def test_virtio_mem(self):
        """Both say that parts of their memory are not there."""
        args = ('-object', 'memory-backend-ram,id=vmem,size=32M',
                '-device', 'virtio-mem-pci,memdev=vmem,requested-size=16M')
        with self.window_vm(args=args, memory='64M,maxmem=1G') as vm:
            vm.set_bars(True)
            self.touch(vm, 0)
            vm.wait(lambda: vm.states()[0] == 'mapped', 'it is mapped')
            self.assertEqual(vm.read_bytes(WINDOW, MIB),
                             self.path.read_bytes())

    def test_icount(self):
        """Instructions are counted, and nothing is recorded."""
        found = {}
        results = run_bare(
            'ondemand', name=self.name, accel='tcg,thread=single',
            defines={'READS': 5000, 'HAMMER': 0, 'WRITES': 100},
            devices=('ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,'
                     f'file={self.path}',),
            args=('-icount', 'shift=0,sleep=off', '-object',
                  'ondemand-policy,id=pol,threshold=50'),
            at_end=lambda g: found.update(hotpath_counters(g.vm, 'vm')))
        self.assertEqual(results['sum'], 0x12345678 * 5000 & 0xffffffff)
        self.assertEqual(results['ran'], 3000)
        self.assertGreater(found['ondemand-map-maps'], 0)

    # Ways to migrate.  The source has a chunk that is mapped, granules that
    # are in RAM, changed and not, and others that are in the file only.

    def prepare(self, vm):
        vm.set_bars(True)
        self.expect = bytearray(self.path.read_bytes())
        for n in range(4):
            self.change(vm, n * 5 * GRANULE, 0x1111111111111111 * (n + 1))
        vm.read(WINDOW + 12 * CHUNK)
        self.touch(vm, 2)
        vm.wait(lambda: vm.states()[2] == 'mapped', 'it is mapped')
        self.change(vm, 2 * CHUNK + 8, 0xdeadbeef)
        vm.cmd('migrate-set-parameters', **{'max-bandwidth': 1 << 40})

    def change(self, vm, offset, value):
        vm.write(WINDOW + offset, value)
        self.expect[offset:offset + 8] = value.to_bytes(8, 'little')

    def capabilities(self, vm, names):
        vm.cmd('migrate-set-capabilities', capabilities=[
            {'capability': name, 'state': True} for name in names])

    def wait_migrated(self, vm):
        found = {}

        def ended():
            found.update(vm.cmd('query-migrate'))
            return found.get('status') in ('completed', 'failed')
        vm.wait(ended, 'the migration ends')
        self.assertEqual(found['status'], 'completed', found)

    def check_moved(self, vm, resident):
        self.assertEqual(vm.counters()['resident-bytes'], resident)
        self.assertEqual(vm.read_bytes(WINDOW, MIB), bytes(self.expect))
        self.touch(vm, 7)
        vm.wait(lambda: vm.states()[7] == 'mapped', 'it is mapped')
        self.assertEqual(vm.read_bytes(WINDOW, MIB), bytes(self.expect))

    def check_stream(self, *names, file=False):
        uri = f'{"file" if file else "unix"}:{self.tmp / "stream"}'
        with self.window_vm('-source') as source, \
                self.window_vm('-destination', args=('-incoming', 'defer')
                               ) as to:
            self.prepare(source)
            self.capabilities(source, names)
            self.capabilities(to, names)
            if not file:
                to.cmd('migrate-incoming', uri=uri)
            source.cmd('migrate', uri=uri)
            self.wait_migrated(source)
            resident = source.counters()['resident-bytes']
            if file:
                to.cmd('migrate-incoming', uri=uri)
            to.wait(lambda: to.cmd('query-status')['status'] == 'running',
                    'it runs')
            self.check_moved(to, resident)

    def test_multifd(self):
        self.check_stream('multifd')

    def test_xbzrle(self):
        self.check_stream('xbzrle')

    def test_mapped_ram(self):
        self.check_stream('mapped-ram', file=True)

    def test_mapped_ram_multifd(self):
        self.check_stream('mapped-ram', 'multifd', file=True)

    def test_background_snapshot(self):
        """What is used after it was begun is not in it."""
        uri = f'file:{self.tmp / "stream"}'
        with self.window_vm('-source') as source:
            from qemu.qmp import ExecuteError
            self.prepare(source)
            try:
                self.capabilities(source, ['background-snapshot'])
            except ExecuteError as error:
                self.skipTest(str(error))
            source.cmd('migrate-set-parameters', **{'max-bandwidth': MIB})
            resident = source.counters()['resident-bytes']
            source.cmd('migrate', uri=uri)
            # stopped for its state and for the protection of its memory
            self.assertIsNotNone(source.vm.event_wait('STOP', 60))
            self.assertIsNotNone(source.vm.event_wait('RESUME', 60))
            expect = bytes(self.expect)
            for at in range(0, MIB, 3 * GRANULE):
                self.change(source, at, 0x77)
            source.cmd('migrate-set-parameters', **{'max-bandwidth': 1 << 40})
            self.wait_migrated(source)
            self.assertEqual(source.read_bytes(WINDOW, MIB),
                             bytes(self.expect))
            self.expect = bytearray(expect)
            with self.window_vm('-destination', args=('-incoming', uri)) as to:
                to.wait(lambda: to.cmd('query-status')['status'] == 'running',
                        'it runs')
                self.check_moved(to, resident)

    def test_cancelled_while_one_waits(self):
        """A migration ends the filling of one chunk; another waits for that.

        When the migration was cancelled that one is mapped as soon as it is hot.
        """
        half = 128 * MIB
        with open(self.path, 'r+b') as file:
            file.truncate(2 * half)     # a hole: it takes a while to be read
        with self.window_vm(
                policy='granule=4k,chunks=2,threshold=2') as vm:
            vm.set_bars(True)
            vm.cmd('migrate-set-parameters', **{'max-bandwidth': 10000})
            for at in 0, half:
                for _ in range(4):
                    vm.read(WINDOW + at)
            vm.cmd('migrate', uri=f'file:{self.tmp / "stream"}')
            vm.wait(lambda: vm.cmd('query-migrate')['status'] == 'active',
                    'it begins')
            late = 'mapped' in vm.states()
            vm.cmd('migrate_cancel')
            vm.wait(lambda: vm.cmd('query-migrate')['status'] == 'cancelled',
                    'it is cancelled')

            def mapped():       # the one that waits is all that is used
                vm.read(WINDOW + half)
                return vm.states()[1] == 'mapped'
            vm.wait(mapped, 'it is mapped')
        if late:
            self.skipTest('a chunk was filled before the migration began')

    def test_ignore_shared(self):
        """The memory backend is the same file on both sides."""
        memory = self.tmp / 'memory'
        memory.write_bytes(self.path.read_bytes())
        more = {'window': 'memdev=ram'}
        args = ('-object', f'memory-backend-file,id=ram,mem-path={memory},'
                'size=1M,share=on')
        uri = f'unix:{self.tmp / "stream"}'
        with self.window_vm('-source', args=args, **more) as source, \
                self.window_vm('-destination', args=(*args, '-incoming',
                                                     'defer'), **more) as to:
            self.prepare(source)
            for vm in source, to:
                self.capabilities(vm, ['x-ignore-shared'])
            to.cmd('migrate-incoming', uri=uri)
            source.cmd('migrate', uri=uri)
            self.wait_migrated(source)
            to.wait(lambda: to.cmd('query-status')['status'] == 'running',
                    'it runs')
            self.check_moved(to, 0)

    def test_cpr_reboot(self):
        """QEMU saves the VM to a file, and another one loads it."""
        uri = f'file:{self.tmp / "stream"}'
        with self.window_vm('-source') as source:
            self.prepare(source)
            source.cmd('migrate-set-parameters', mode='cpr-reboot')
            source.cmd('migrate', uri=uri)
            self.wait_migrated(source)
            resident = source.counters()['resident-bytes']
        with self.window_vm('-destination', args=('-incoming', 'defer')) as to:
            to.cmd('migrate-set-parameters', mode='cpr-reboot')
            to.cmd('migrate-incoming', uri=uri)
            to.wait(lambda: to.cmd('query-migrate').get('status') ==
                    'completed', 'it is loaded')
            to.cmd('cont')
            self.check_moved(to, resident)

    def test_cpr_transfer(self):
        """Another QEMU takes the VM over, with its memory as it is."""
        main, cpr = self.tmp / 'main', self.tmp / 'cpr'
        shared = ('-machine', 'pc,aux-ram-share=on,memory-backend=ram0',
                  '-object', 'memory-backend-memfd,id=ram0,size=64M,share=on')
        to = self.window_vm('-destination', args=(
            *shared, '-incoming', f'unix:{main}', '-incoming', json.dumps({
                'channel-type': 'cpr', 'addr': self.socket(cpr)})))
        with self.window_vm('-source', args=shared) as source:
            self.prepare(source)
            source.cmd('migrate-set-parameters', mode='cpr-transfer')
            # its monitor answers only when it has got the first channel
            thread = threading.Thread(target=to.vm.launch)
            thread.start()
            source.wait(cpr.exists, 'the destination listens')
            source.cmd('migrate', channels=[
                {'channel-type': 'main', 'addr': self.socket(main)},
                {'channel-type': 'cpr', 'addr': self.socket(cpr)}])
            thread.join()
            with to.launched():
                self.wait_migrated(source)
                resident = source.counters()['resident-bytes']
                to.wait(lambda: to.cmd('query-status')['status'] == 'running',
                        'it runs')
                self.check_moved(to, resident)

    @staticmethod
    def socket(path):
        return {'transport': 'socket', 'type': 'unix', 'path': str(path)}


if __name__ == '__main__':
    unittest.main()
