# SPDX-License-Identifier: GPL-2.0-or-later
"""space-guard in a virtual machine, on storage that really runs out."""
import random
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from hotpath_paths import qemu_binary, use_qemu_python
from storage_vm import (CLUSTER_SECTORS, DISK, DISK_BYTES, KIB, MIB, Loop,
                        StorageVm, Tmpfs, WAIT_S, check_image, guarded,
                        make_image, need_root, run)

START = 2 * MIB
QUIET_S = 0.4           # longer than anything that could resume a VM


class GuardTest(unittest.TestCase):
    kind = Tmpfs

    def setUp(self):
        need_root()
        self.storage = self.kind(START)
        self.addCleanup(self.storage.close)
        make_image(self.storage)

    def vm(self, name='vm', args=(), device=DISK, **options):
        return StorageVm(name, guarded(self.storage, **options) + tuple(args),
                         device)

    def check(self, vm):
        """End the machine; all it wrote must be in the image."""
        vm.vm.shutdown()
        check_image(self, self.storage, vm.written)

    def assert_stays(self, vm, state):
        end = time.monotonic() + QUIET_S
        while time.monotonic() < end:
            self.assertEqual(vm.state(), state)
            time.sleep(0.02)


class OnTmpfs(GuardTest):

    def test_stop(self):
        with self.vm() as vm:
            vm.fill()
            vm.wait_state('io-error')
            request = vm.request()
            self.assertEqual((request['cause'], request['state'],
                              request['stopped'], request['attempt']),
                             ('write', 'open', True, 1))
            self.assertTrue(request['qom-path'].endswith('/disk0'))
            self.assertEqual(request['filename'], str(self.storage.path))

            # an answer that is not true changes nothing
            self.assertEqual(vm.resolve(), 'not-grown')
            self.assert_stays(vm, 'io-error')
            self.assertEqual(vm.request()['attempt'], 2)

            self.storage.grow(4 * MIB)
            self.assert_stays(vm, 'io-error')
            self.assertEqual(vm.resolve(), 'grown')
            vm.wait_state('running')
            vm.wait_written()
            self.assertEqual(vm.requests(), [])
            self.assertEqual({disk['io-status'] for disk in
                              vm.cmd('query-block')}, {'ok'})
            stats = vm.stats()
            self.assertEqual((stats['requests'], stats['grown'],
                              stats['not-grown'], stats['resumed']),
                             (1, 1, 1, 1))
            self.check(vm)

    def test_hold(self):
        with self.vm(policy='hold') as vm:
            following = vm.fill()
            self.assertEqual(vm.request()['held'], 1)
            self.assert_stays(vm, 'running')
            self.storage.grow(4 * MIB)
            self.assertEqual(vm.resolve(), 'grown')
            vm.wait_written()
            vm.start_write(following * CLUSTER_SECTORS, 7)
            vm.wait_written()
            self.assertEqual(vm.stats()['failed'], 0)
            self.check(vm)

    def test_hold_expires(self):
        with self.vm(policy='hold', max_hold_ms=100) as vm:
            vm.fill()
            vm.wait_state('io-error')
            self.storage.grow(4 * MIB)
            vm.resolve()
            vm.wait_state('running')
            vm.wait_written()
            self.assertEqual(vm.stats()['expired'], 1)
            self.check(vm)

    def test_denied(self):
        with self.vm(policy='hold') as vm:
            vm.fill()
            self.assertEqual(vm.resolve('denied'), 'denied')
            vm.wait_state('io-error')
            self.assertEqual(vm.request()['state'], 'denied')
            self.assert_stays(vm, 'io-error')
            self.storage.grow(4 * MIB)
            self.assertEqual(vm.resolve(), 'grown')
            vm.wait_state('running')
            vm.wait_written()
            self.check(vm)

    def test_user_pause_stays(self):
        """A VM that its user stops, before or after the error, stays so."""
        for late in (True, False):
            with self.subTest(late=late), \
                 self.vm(policy='stop' if late else 'hold') as vm:
                following = vm.fill()
                if late:
                    vm.wait_state('io-error')
                vm.cmd('stop')
                state = 'io-error' if late else 'paused'
                self.storage.grow(MIB)
                self.assertEqual(vm.resolve(), 'grown')
                self.assert_stays(vm, state)
                vm.cmd('cont')
                vm.wait_state('running')
                vm.wait_written()
                # and that is forgotten afterwards
                vm.fill(following)
                vm.request()
                self.storage.grow(MIB)
                vm.resolve()
                vm.wait_written()
                self.check(vm)
            make_image(self.storage)

    def test_five_stops_are_seen(self):
        with self.vm() as vm:
            vm.fill()
            for _ in range(4):
                vm.wait_state('io-error')
                vm.cmd('cont')
                vm.wait(lambda: vm.state() == 'io-error' or vm.requests(),
                        'it stops again')
            vm.wait_state('io-error')
            vm.wait(lambda: vm.request()['attempt'] == 5, 'five attempts')
            seen = [event['data']['attempt'] for event in
                    vm.vm.get_qmp_events(wait=False)
                    if event['event'] == 'BLOCK_SPACE_REQUEST']
            self.assertEqual(seen, [1, 2, 3, 4, 5])
            self.storage.grow(4 * MIB)
            vm.resolve()
            vm.wait_written()
            self.check(vm)

    def test_answer_races_the_stop(self):
        seed = random.randrange(1 << 32)
        rand = random.Random(seed)
        print(f'seed {seed}')
        with self.vm(policy='hold', max_hold_ms=5) as vm:
            following = 0
            for _ in range(30):
                following = vm.fill(following)
                self.storage.grow(256 * KIB)
                time.sleep(rand.random() * 0.01)
                if vm.requests():
                    vm.resolve()
                vm.wait_written()
                vm.wait_state('running')
            self.check(vm)

    def test_error_comes_late(self):
        """The device may learn of an error long after the answer to it."""
        def qemu_io(command):
            vm.cmd('human-monitor-command', {'command-line':
                   f'qemu-io -d /machine/peripheral/disk0 "{command}"'})
        *args, image = guarded(self.storage)
        args = (*args[:-1], '-blockdev',
                'driver=blkdebug,node-name=debug,image=guard', '-blockdev',
                image.replace('file=guard', 'file=debug'))
        with StorageVm('late', args) as vm:
            vm.start_write(0, 1)            # the image's tables are there
            vm.wait_written()
            self.storage.fill()
            qemu_io('break cluster_free late')
            vm.start_write(CLUSTER_SECTORS, 2)
            self.assertTrue(vm.request()['stopped'])
            self.storage.grow(MIB)
            self.assertEqual(vm.resolve(), 'grown')
            time.sleep(1.5)
            self.assertEqual(vm.state(), 'running')
            qemu_io('resume late')
            vm.wait(lambda: vm.stats()['resumed'], 'it is resumed')
            vm.wait_written()
            self.check(vm)

    def test_while_holding(self):
        """What drains does not wait, and nothing is lost."""
        def snapshot(vm):
            with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
                vm.cmd('blockdev-snapshot-sync', {
                    'node-name': 'disk', 'snapshot-file': f'{folder}/s',
                    'snapshot-node-name': 'over', 'format': 'qcow2'})
                vm.wait_state('io-error')
                self.storage.grow(MIB)
                vm.resolve()
                vm.wait_written()
                vm.forget()             # is in the overlay
                vm.vm.shutdown()

        def stop(vm):
            vm.cmd('stop')
            self.assertEqual(vm.state(), 'paused')
            self.storage.grow(MIB)
            vm.resolve()
            vm.cmd('cont')
            vm.wait_written()

        def reset(vm):
            vm.cmd('system_reset')
            vm.wait(lambda: vm.stats()['drained'], 'the write is given back')
            vm.forget()                 # as the guest would expect
            self.storage.grow(MIB)
            if vm.requests():
                vm.resolve()
            vm.wait_state('running')

        def reset_and_go_on(vm):
            """The write that was cancelled stops nothing, now or later."""
            vm.cmd('system_reset')
            vm.wait(lambda: vm.stats()['drained'], 'the write is given back')
            vm.forget()
            vm.start_write(500 * CLUSTER_SECTORS, 5)
            vm.wait(lambda: vm.stats()['held'] == 2, 'another one waits')
            self.assertEqual(vm.state(), 'running')
            self.storage.grow(MIB)
            vm.resolve()
            vm.wait_written()
            self.assertEqual(vm.stats()['resumed'], 0)

        def leave(vm):
            vm.forget()
            vm.cmd('quit')
            vm.vm.wait(timeout=10)

        for act in (stop, snapshot, reset, reset_and_go_on, leave):
            with self.subTest(act=act.__name__), \
                 self.vm(policy='hold', max_hold_ms=25000) as vm:
                vm.fill()
                self.assertEqual(vm.request()['held'], 1)
                start = time.monotonic()
                act(vm)
                self.assertLess(time.monotonic() - start, 20, 'it waited')
                self.check(vm)
            make_image(self.storage)

    def test_reset_with_werror_stop(self):
        """What a reset cancels is no error of the disk, whatever the policy."""
        with self.vm(device=f'{DISK},werror=stop', policy='hold',
                     max_hold_ms=25000) as vm:
            vm.fill()
            vm.cmd('system_reset')
            vm.wait(lambda: vm.stats()['drained'], 'the write is given back')
            vm.forget()
            self.assert_stays(vm, 'running')
            self.assertEqual({disk['io-status'] for disk in
                              vm.cmd('query-block')}, {'ok'})
            self.assertNotIn('BLOCK_IO_ERROR',
                             {event['event'] for event in
                              vm.vm.get_qmp_events(wait=False)})
            vm.start_write(500 * CLUSTER_SECTORS, 5)
            vm.wait(lambda: vm.stats()['held'] == 2, 'another one waits')
            self.storage.grow(MIB)
            vm.resolve()
            vm.wait_written()
            self.check(vm)

    def two_disks(self, **options):
        """A machine with another disk, without space, at the second channel;
        the options are those of its guard."""
        other = Tmpfs(START)
        self.addCleanup(other.close)
        make_image(other)
        other.fill()
        vm = self.vm(args=guarded(other, '2', **options) + (
            '-device', 'ide-hd,drive=disk2,bus=ide.1,id=disk2'),
            policy='hold', max_hold_ms=25000)
        return vm, other

    def request_of(self, vm, node):
        """The request of a guard, or None."""
        return {r['node-name']: r for r in vm.requests()}.get(node)

    def test_reset_of_another_disk(self):
        """... leaves the writes of this one alone."""
        vm, other = self.two_disks(policy='hold', max_hold_ms=25000)
        with vm:
            vm.fill()
            vm.port = 0x170
            vm.start_write(0, 1)
            vm.wait(lambda: self.request_of(vm, 'guard2'), 'both wait')
            vm.written.popitem()
            vm.out('b', 0x3f6, 4)       # a reset of the first channel
            vm.out('b', 0x3f6, 0)
            vm.wait(lambda: not self.request_of(vm, 'guard')['held'],
                    'the write is given back')
            vm.forget()
            self.assert_stays(vm, 'running')
            self.assertEqual(self.request_of(vm, 'guard2')['held'], 1)
            self.storage.grow(MIB)
            other.grow(MIB)
            for request in vm.requests():
                vm.cmd('block-space-resolve', id=request['id'],
                       result='grown')
            self.assert_stays(vm, 'running')
            self.assertEqual(vm.stats()['resumed'], 0)
            self.check(vm)

    def test_cancelled_request_stops_nothing(self):
        """A write that was cancelled does not keep the VM stopped when the
        storage of another disk has grown."""
        vm, other = self.two_disks(policy='stop')
        with vm:
            vm.fill()
            vm.cmd('system_reset')
            vm.wait(lambda: vm.stats()['drained'], 'the write is given back')
            vm.forget()
            self.assertFalse(vm.request()['stopped'])
            vm.port = 0x170
            vm.start_write(0, 1)
            vm.wait_state('io-error')
            vm.written.popitem()
            self.assertFalse(self.request_of(vm, 'guard')['stopped'])
            other.grow(MIB)
            vm.cmd('block-space-resolve', result='grown',
                   id=self.request_of(vm, 'guard2')['id'])
            vm.wait_state('running')
            self.assertEqual(vm.resolve(), 'not-grown')
            self.assert_stays(vm, 'running')
            self.check(vm)

    def test_failed_job_stops_nothing(self):
        """Nor does a request that a job's write has left."""
        other = Tmpfs(START)
        self.addCleanup(other.close)
        make_image(other)
        for storage in (self.storage, other):
            storage.fill()
        with tempfile.NamedTemporaryFile(dir='/var/tmp') as source:
            source.write(b'x' * MIB)
            source.truncate(DISK_BYTES)
            with self.vm(args=guarded(other, '2') + (
                    '-blockdev', 'driver=file,node-name=source,'
                    f'filename={source.name}')) as vm:
                vm.cmd('blockdev-mirror', {
                    'job-id': 'job', 'device': 'source', 'target': 'disk2',
                    'sync': 'full'})
                vm.wait(lambda: self.job_state(vm, 'job') is None,
                        'the job fails')
                self.assertEqual(vm.state(), 'running')
                vm.start_write(0, 1)
                vm.wait_state('io-error')
                self.storage.grow(MIB)
                vm.cmd('block-space-resolve', result='grown',
                       id=self.request_of(vm, 'guard')['id'])
                vm.wait_state('running')
                vm.wait_written()
                self.assertEqual(vm.request()['node-name'], 'guard2')
                self.check(vm)

    def test_failed_flush_of_a_job_stops_nothing(self):
        """... nor a flush that it could not do."""
        self.storage.fill()
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            for name in ('source', 'target'):
                Path(folder, name).write_bytes(name[:1].encode() * MIB)
            with self.vm(args=(
                    '-blockdev', 'driver=file,node-name=source,'
                    f'filename={folder}/source',
                    '-blockdev', 'driver=file,node-name=tdata,'
                    f'filename={folder}/target',
                    '-blockdev', 'driver=blkdebug,node-name=bad,image=tdata,'
                    'inject-error.0.event=none,inject-error.0.iotype=flush,'
                    'inject-error.0.errno=28',
                    '-blockdev', 'driver=space-guard,node-name=guard2,'
                    'file=bad')) as vm:
                vm.cmd('blockdev-mirror', {
                    'job-id': 'job', 'device': 'source', 'target': 'guard2',
                    'sync': 'full'})
                vm.wait(lambda: self.job_state(vm, 'job') is None,
                        'the job fails')
                self.assertEqual(vm.request()['cause'], 'flush')
                vm.start_write(0, 1)
                vm.wait_state('io-error')
                self.storage.grow(MIB)
                vm.cmd('block-space-resolve', result='grown',
                       id=self.request_of(vm, 'guard')['id'])
                vm.wait_state('running')
                vm.wait_written()
                self.check(vm)

    def test_two_disks_stop(self):
        """A VM that two disks have stopped runs when both have grown."""
        vm, other = self.two_disks(policy='stop')
        self.storage.fill()
        with vm:
            vm.start_write(0, 1)
            vm.wait(lambda: self.request_of(vm, 'guard'), 'it waits')
            vm.written.popitem()
            vm.port = 0x170
            vm.start_write(0, 1)
            vm.wait_state('io-error')
            # the first one was given back when the VM stopped
            vm.written.popitem()
            for storage, node in ((other, 'guard2'), (self.storage, 'guard')):
                self.assert_stays(vm, 'io-error')
                storage.grow(MIB)
                vm.cmd('block-space-resolve', result='grown',
                       id=self.request_of(vm, node)['id'])
            vm.wait_state('running')
            self.assertEqual(vm.stats()['resumed'], 1)
            self.check(vm)

    def test_reset_with_a_mirror(self):
        """A write that waits for what the mirror's target waits for."""
        self.storage.fill()
        with tempfile.NamedTemporaryFile(dir='/var/tmp') as source:
            source.truncate(DISK_BYTES)
            with self.vm(args=('-blockdev', 'driver=file,node-name=source,'
                               f'filename={source.name}'),
                         device='ide-hd,drive=source,bus=ide.0,id=disk0',
                         policy='hold', max_hold_ms=25000) as vm:
                vm.cmd('blockdev-mirror', {
                    'job-id': 'job', 'device': 'source', 'target': 'disk',
                    'sync': 'none', 'copy-mode': 'write-blocking'})
                vm.wait(lambda: self.job_state(vm, 'job') == 'ready',
                        'the mirror is ready')
                vm.start_write(0, 1)
                vm.wait(lambda: vm.stats()['held'], 'it waits')
                vm.cmd('system_reset')
                vm.wait(lambda: vm.stats()['drained'], 'it is given back')
                self.assertEqual(vm.stats()['expired'], 0)
                self.assertEqual(vm.state(), 'running')

    def test_drain_of_what_is_mirrored(self):
        """It does not wait for a write that the mirror's target holds."""
        def reset(vm):
            vm.cmd('system_reset')

        def set_limit(vm, iops):
            vm.cmd('block_set_io_throttle', {
                'id': '/machine/peripheral/disk0/virtio-backend',
                'bps': 0, 'bps_rd': 0, 'bps_wr': 0, 'iops': iops,
                'iops_rd': 0, 'iops_wr': 0})

        def no_limit(vm):
            set_limit(vm, 0)

        self.storage.fill()
        for drain in (reset, no_limit):
            with self.subTest(drain=drain.__name__), \
                 tempfile.NamedTemporaryFile(dir='/var/tmp') as source:
                source.write(b'x' * MIB)
                source.truncate(DISK_BYTES)
                with self.vm(args=(
                        '-blockdev', 'driver=file,node-name=source,'
                        f'filename={source.name}'),
                        device='virtio-blk-pci,drive=source,id=disk0',
                        policy='hold', max_hold_ms=25000) as vm:
                    set_limit(vm, 1000)
                    vm.cmd('blockdev-mirror', {
                        'job-id': 'job', 'device': 'source',
                        'target': 'disk', 'sync': 'full'})
                    vm.wait(lambda: vm.stats()['held'], 'it waits')
                    drain(vm)
                    vm.wait(lambda: vm.stats()['drained'],
                            'it is given back')
                    self.assertEqual(vm.stats()['expired'], 0)
                    self.assertEqual(vm.state(), 'running')
                    vm.wait(lambda: self.job_state(vm, 'job') is None,
                            'the job fails')

    def test_device_is_unplugged(self):
        """... with a request open: while a write waits, or after it failed."""
        for policy in ('hold', 'stop'):
            with self.subTest(policy=policy), \
                 self.vm(policy=policy, max_hold_ms=25000, device=None) as vm:
                self.unplug(vm, policy == 'hold')
            make_image(self.storage)

    def unplug(self, vm, held):
        """Unplug a disk that a request is open for."""
        vm.cmd('device_add', driver='virtio-blk-pci', drive='disk',
               id='plugged')
        vm.cmd('human-monitor-command', {'command-line':
               'qemu-io -d /machine/peripheral/plugged/virtio-backend '
               f'"aio_write -q 0 {START}"'})
        request = vm.request()
        self.assertEqual(request['held'] > 0, held)
        self.assertIn('plugged', request['qom-path'])
        start = time.monotonic()
        vm.cmd('device_del', id='plugged')
        vm.cmd('system_reset')      # the guest lets go of it
        vm.wait(lambda: not any(
            x['type'] == 'child<virtio-blk-pci>' for x in
            vm.cmd('qom-list', path='/machine/peripheral')),
            'the device goes')
        # what nobody uses may still be answered
        self.assertNotIn('qom-path', vm.request())
        self.assertEqual(vm.resolve(), 'not-grown')
        vm.wait(lambda: vm.try_cmd('blockdev-del', {'node-name': 'disk'}),
                'the disk is free')
        vm.cmd('blockdev-del', {'node-name': 'guard'})
        self.assertLess(time.monotonic() - start, 20, 'it waited')
        self.assertEqual(vm.requests(), [])
        event = vm.vm.event_wait('BLOCK_SPACE_RESOLVED', timeout=WAIT_S)
        self.assertEqual((event['data']['id'], event['data']['outcome']),
                         (request['id'], 'withdrawn'))

    def reopen(self, vm, **options):
        """Reopen the guard with other options; return what is wrong."""
        from qemu.qmp.qmp_client import ExecuteError
        options = {'driver': 'space-guard', 'node-name': 'guard',
                   'file': 'data', 'policy': 'hold', 'max-hold-ms': 25000,
                   **options}
        try:
            vm.cmd('blockdev-reopen', options=[options])
        except ExecuteError as error:
            return str(error)
        return ''

    def test_reopen(self):
        """Nodes are reopened, and the one below changes, while one waits."""
        with self.vm(policy='hold', max_hold_ms=25000) as vm:
            following = vm.fill()
            start = time.monotonic()
            vm.cmd('blockdev-reopen', options=[
                {'driver': 'qcow2', 'node-name': 'disk', 'file': 'guard',
                 'lazy-refcounts': False, 'discard': 'unmap'}])
            self.assertLess(time.monotonic() - start, 20, 'it waited')
            vm.wait_state('io-error')
            self.storage.grow(MIB)
            self.assertEqual(vm.resolve(), 'grown')
            vm.wait_written()

            following = vm.fill(following)
            self.assertEqual(vm.request()['held'], 1)
            self.assertIn('policy', self.reopen(vm, policy='stop'))
            vm.cmd('blockdev-add', {'driver': 'copy-on-read',
                                    'node-name': 'cor', 'file': 'data'})
            self.assertEqual(self.reopen(vm, file='cor'), '')
            self.storage.grow(MIB)
            vm.resolve()
            vm.wait_state('running')
            vm.wait_written()
            vm.fill(following)
            self.assertEqual(vm.request()['filename'], str(self.storage.path))
            self.storage.grow(MIB)
            vm.resolve()
            vm.wait_state('running')
            vm.wait_written()
            self.check(vm)

    def test_reopen_is_checked(self):
        """A node that the options do not fit does not come below."""
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            run(qemu_binary('qemu-img'), 'create', '-q', '-f', 'qcow2',
                f'{folder}/other', str(MIB))
            args = ('-blockdev', 'driver=file,node-name=ofile,'
                    f'filename={folder}/other',
                    '-blockdev', 'driver=qcow2,node-name=format,file=ofile',
                    '-blockdev', 'driver=null-co,node-name=null,'
                    f'read-zeroes=on,size={DISK_BYTES}')
            with self.vm(args=args, policy='hold', max_hold_ms=25000,
                         low_water=64 * KIB) as vm:
                self.assertIn("not above node 'format'", self.reopen(
                    vm, file='format', **{'low-water': 64 * KIB}))
                self.assertIn('what is left cannot be measured', self.reopen(
                    vm, file='null', **{'low-water': 64 * KIB}))
                # as before
                following = vm.fill()
                self.storage.grow(4 * MIB)
                vm.resolve()
                vm.wait_written()
                vm.start_write(following * CLUSTER_SECTORS, 7)
                vm.wait_written()
                self.check(vm)

    def job_state(self, vm, job):
        """The state of a job, or None when it is gone."""
        return {j['id']: j['status'] for j in vm.cmd('query-jobs')}.get(job)

    def fill_by_job(self, vm, cancel):
        """A job that is running has no space; then it has, or is cancelled."""
        self.assertEqual(vm.request()['held'] > 0, True)
        self.assertNotIn('qom-path', vm.request())
        if cancel:                      # it ends with the hold
            vm.cmd('block-job-cancel', device='job', force=True)
            vm.wait(lambda: self.job_state(vm, 'job') is None, 'it is gone')
            self.assertEqual(vm.state(), 'running')
            return
        while self.job_state(vm, 'job') != 'ready':
            if vm.requests():
                self.storage.grow(MIB)
                number = vm.request()['id']
                vm.try_cmd('block-space-resolve', id=number, result='grown')
        vm.cmd('block-job-complete', device='job')
        vm.wait(lambda: self.job_state(vm, 'job') is None, 'it is gone')
        self.assertEqual(vm.requests(), [])
        self.assertEqual(vm.stats()['failed'], 0)

    def test_mirror(self):
        """To a target that has too little space."""
        for cancel in (True, False):     # before it has grown, and then
            with self.subTest(cancel=cancel), \
                 tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
                source = Path(folder, 'source')
                run(qemu_binary('qemu-img'), 'create', '-q', source,
                    str(DISK_BYTES))
                run(qemu_binary('qemu-io'), '-f', 'raw', '-c',
                    'write -q -P 5 0 5M', source)
                with self.vm(args=(
                        '-blockdev', 'driver=file,node-name=source,'
                        f'filename={source}'), device=None, policy='hold',
                        max_hold_ms=25000) as vm:
                    # one write at a time: what fails after a cancel is held
                    vm.cmd('blockdev-mirror', {
                        'job-id': 'job', 'device': 'source', 'target': 'disk',
                        'sync': 'full', 'granularity': 65536,
                        'buf-size': 65536 if cancel else 0})
                    self.fill_by_job(vm, cancel)
                    self.assertEqual(vm.stats()['expired'], 0)
                    vm.vm.shutdown()
                if not cancel:
                    run(qemu_binary('qemu-img'), 'compare', '-f', 'raw', '-F',
                        'qcow2', source, self.storage.path)
            make_image(self.storage)

    def test_commit(self):
        """An overlay into a base that has too little space."""
        for cancel in (True, False):     # before it has grown, and then
            with self.subTest(cancel=cancel), \
                 tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
                over = Path(folder, 'over')
                run(qemu_binary('qemu-img'), 'create', '-q', '-f', 'qcow2',
                    '-b', self.storage.path, '-F', 'qcow2', over)
                run(qemu_binary('qemu-io'), '-f', 'qcow2', '-c',
                    'write -q -P 5 0 5M', over)
                with self.vm(args=(
                        '-blockdev', 'driver=file,node-name=ofile,'
                        f'filename={over}',
                        '-blockdev', 'driver=qcow2,node-name=over,file=ofile,'
                        'backing=disk'), device=None, policy='hold',
                        max_hold_ms=2000 if cancel else 25000) as vm:
                    vm.cmd('block-commit', {'job-id': 'job',
                                            'device': 'over'})
                    self.fill_by_job(vm, cancel)
                    vm.vm.shutdown()
                if not cancel:
                    run(qemu_binary('qemu-io'), '-f', 'qcow2', '-c',
                        'read -q -P 5 0 5M', self.storage.path)
                    run(qemu_binary('qemu-img'), 'check', '-q', '-f', 'qcow2',
                        self.storage.path)
            make_image(self.storage)

    def migrate(self, source, target, address):
        source.cmd('migrate', uri=address)
        source.wait(lambda: source.cmd('query-migrate')['status'] in
                    ('completed', 'failed'), 'the migration ends')
        return source.cmd('query-migrate')['status']

    def test_migrate(self):
        """An open request goes along, however the write was treated."""
        for policy, paused in (('stop', None), ('stop', 'source'),
                               ('stop', 'target'), ('hold', None)):
            with self.subTest(policy=policy, paused=paused), \
                 tempfile.TemporaryDirectory(dir='/tmp') as folder, \
                 self.vm('source', policy=policy) as source, \
                 self.vm('target', ('-incoming', f'unix:{folder}/m'),
                         policy=policy) as target:
                source.fill()
                if policy == 'stop':
                    source.wait_state('io-error')
                    self.assertEqual(source.resolve(), 'not-grown')
                if paused:
                    {'source': source, 'target': target}[paused].cmd('stop')
                status = self.migrate(source, target, f'unix:{folder}/m')
                self.assertEqual(status, 'completed')
                source.vm.shutdown(hard=True)
                target.take_over(source)
                request = target.request()
                self.assertEqual(request['cause'], 'write')
                self.assertTrue(request['qom-path'].endswith('/disk0'))
                if policy == 'stop':
                    self.assertEqual(request['attempt'], 2)
                    self.assertEqual(target.state(), 'io-error')
                self.storage.grow(MIB)
                self.assertEqual(target.resolve(), 'grown')
                if paused:
                    self.assert_stays(target, 'io-error')
                    target.cmd('cont')
                target.wait_state('running')
                target.wait_written()
                self.check(target)
            make_image(self.storage)

    def test_migrate_full_metadata(self):
        """What cannot be written fails the migration, and is kept."""
        entries = 4096 // 8             # of a page of the image's L2 table
        with self.vm() as vm:
            vm.start_write(0, 1)
            vm.wait_written()
            self.check(vm)
        # the next page of that table is to have no memory behind it
        with open(self.storage.path, 'rb') as file:
            file.seek(0x28)             # where the L1 table is
            file.seek(int.from_bytes(file.read(8), 'big'))
            table = int.from_bytes(file.read(8), 'big') & ~(1 << 63)
        run('fallocate', '-p', '-o', table + 4096, '-l', 4096,
            self.storage.path)
        with tempfile.TemporaryDirectory(dir='/tmp') as folder, \
             self.vm('source') as source, \
             self.vm('target', ('-incoming', f'unix:{folder}/m')) as target:
            source.written[0] = 1
            source.start_write(entries * CLUSTER_SECTORS, 2)
            source.wait_written()
            self.storage.fill()
            self.assertEqual(self.migrate(source, target,
                                          f'unix:{folder}/m'), 'failed')
            request = source.request()
            self.assertEqual(request['cause'], 'write')
            target.vm.shutdown(hard=True)
            self.assertEqual(source.state(), 'running')
            self.storage.grow(MIB)
            self.assertEqual(source.resolve(), 'grown')
            source.wait_state('running')
            self.assertEqual(source.requests(), [])
            self.check(source)

    def test_migrate_grown_meanwhile(self):
        """There is room when the VM arrives: it goes on without asking."""
        with tempfile.TemporaryDirectory(dir='/tmp') as folder, \
             self.vm('source') as source, \
             self.vm('target', ('-incoming', f'unix:{folder}/m')) as target:
            source.fill()
            source.wait_state('io-error')
            self.storage.grow(MIB)
            self.assertEqual(self.migrate(source, target,
                                          f'unix:{folder}/m'), 'completed')
            source.vm.shutdown(hard=True)
            target.take_over(source)
            target.wait_state('running')
            target.wait_written()
            self.assertEqual(target.requests(), [])
            self.check(target)

    def test_migrate_answered_meanwhile(self):
        """The answer comes when the VM has stopped to be handed over."""
        with tempfile.TemporaryDirectory(dir='/tmp') as folder, \
             self.vm('source') as source, \
             self.vm('target', ('-incoming', f'unix:{folder}/m')) as target:
            def status():
                return source.cmd('query-migrate')['status']
            source.fill()
            source.wait_state('io-error')
            source.cmd('migrate-set-capabilities', capabilities=[{
                'capability': 'pause-before-switchover', 'state': True}])
            source.cmd('migrate', uri=f'unix:{folder}/m')
            source.wait(lambda: status() == 'pre-switchover', 'it pauses')
            self.storage.grow(MIB)
            self.assertEqual(source.resolve(), 'grown')
            source.cmd('migrate-continue', state='pre-switchover')
            source.wait(lambda: status() == 'completed', 'it ends')
            source.vm.shutdown(hard=True)
            target.take_over(source)
            target.wait_state('running')
            target.wait_written()
            self.assertEqual(target.requests(), [])
            self.check(target)

    def test_stop_while_a_migration_fails(self):
        """It does not stop the VM, so it does not keep it stopped later."""
        with self.vm() as source:
            source.cmd('migrate-set-capabilities', capabilities=[{
                'capability': 'pause-before-switchover', 'state': True}])
            source.cmd('migrate', uri='exec:cat > /dev/null')
            source.wait(lambda: source.cmd('query-migrate')['status'] ==
                        'pre-switchover', 'it pauses')
            source.cmd('stop')
            source.cmd('migrate_cancel')
            source.wait_state('running')
            source.fill()
            source.wait_state('io-error')
            self.storage.grow(MIB)
            self.assertEqual(source.resolve(), 'grown')
            source.wait_state('running')
            source.wait_written()
            self.check(source)

    def test_low_water(self):
        with self.vm(low_water=MIB) as vm:
            following = 0
            while not vm.requests():
                vm.start_write(following * CLUSTER_SECTORS, 9)
                vm.wait_written()
                following += 1
                time.sleep(0.02)
            request = vm.request()
            self.assertEqual(request['cause'], 'low-water')
            self.assertEqual(vm.state(), 'running')
            self.storage.grow(4 * MIB)
            answered = vm.try_cmd('block-space-resolve', id=request['id'],
                                  result='grown')
            # if not, the guard had looked itself since, as it does at times
            counted = vm.stats()
            self.assertEqual(counted['grown' if answered else 'recovered'], 1)
            self.assertEqual(vm.requests(), [])
            self.assertEqual(counted['failed'], 0)
            self.check(vm)

    def test_error_while_suspended(self):
        """A write that waits in vain stops a VM that has gone to sleep."""
        with self.vm(policy='hold', max_hold_ms=1000) as vm:
            for reg, value in ((0x40, 0x601), (0x80, 1), (4, 1)):
                vm.out('l', 0xcf8, 0x80000000 | 1 << 11 | 3 << 8 | reg)
                vm.out('l', 0xcfc, value)
            vm.fill()
            vm.out('w', 0x604, 1 << 13 | 1 << 10)       # to sleep
            vm.wait_state('suspended')
            vm.wait_state('io-error')
            self.storage.grow(MIB)
            self.assertEqual(vm.resolve(), 'grown')
            vm.wait_state('suspended')
            vm.wait_written()
            self.check(vm)

    def test_other_errors(self):
        """EIO is not ENOSPC."""
        args = ('-blockdev', f'driver=file,node-name=data,'
                f'filename={self.storage.path}',
                '-blockdev', 'driver=blkdebug,node-name=bad,image=data,'
                'inject-error.0.event=pwritev,inject-error.0.errno=5,'
                'inject-error.0.once=on,inject-error.0.state=1',
                '-blockdev', 'driver=space-guard,node-name=guard,file=bad,'
                'policy=hold',
                '-blockdev', 'driver=qcow2,node-name=disk,file=guard')
        with StorageVm('eio', args, f'{DISK},werror=stop') as vm:
            vm.start_write(0, 1)
            vm.wait_state('io-error')
            self.assertEqual(vm.requests(), [])
            self.assert_stays(vm, 'io-error')
            vm.cmd('cont')
            vm.wait_written()
            self.check(vm)

    def test_other_disk_has_an_error(self):
        """Storage that has grown does not resume a VM that EIO stopped."""
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            other = Path(folder, 'other')
            other.write_bytes(bytes(MIB))
            args = ('-blockdev', f'driver=file,node-name=odata,'
                    f'filename={other}',
                    '-blockdev', 'driver=blkdebug,node-name=bad,image=odata,'
                    'inject-error.0.event=pwritev,inject-error.0.errno=5',
                    '-device', 'ide-hd,drive=bad,bus=ide.0,unit=1,id=other,'
                    'werror=stop')
            with self.vm('two', args) as vm:
                vm.fill()
                vm.wait_state('io-error')
                vm.cmd('cont')
                vm.wait_state('io-error')
                # the same controller cannot do both at once: let the disk's
                # write finish, then fail the other disk's
                self.storage.grow(MIB)
                self.assertEqual(vm.resolve(), 'grown')
                vm.wait_written()
                vm.out('b', 0x1f6, 0xf0)
                vm.out('b', 0x1f2, 1)
                for i in range(3):
                    vm.out('b', 0x1f3 + i, 0)
                vm.out('b', 0x1f7, 0x30)
                for _ in range(128):
                    vm.out('l', 0x1f0, 0)
                vm.wait_state('io-error')
                self.assert_stays(vm, 'io-error')

    def test_other_error_migrates(self):
        """... nor does it where the VM has gone since."""
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            other = Path(folder, 'other')
            other.write_bytes(bytes(MIB))
            def args(errors):
                return ('-blockdev', f'driver=file,node-name=odata,'
                        f'filename={other}', '-blockdev',
                        f'driver=blkdebug,node-name=bad,image=odata{errors}',
                        '-device', 'ide-hd,drive=bad,bus=ide.1,id=other,'
                        'werror=stop')
            with self.vm('source', args(',inject-error.0.event=none,'
                                        'inject-error.0.iotype=write,'
                                        'inject-error.0.errno=5'),
                         policy='hold', max_hold_ms=25000) as source, \
                 self.vm('target', args('') +
                         ('-incoming', f'unix:{folder}/m')) as target:
                source.fill()
                source.port = 0x170
                source.start_write(0, 1)
                source.forget()
                source.wait_state('io-error')
                self.assertTrue(source.request()['stopped'])
                self.assertEqual(self.migrate(source, target,
                                              f'unix:{folder}/m'), 'completed')
                source.vm.shutdown(hard=True)
                target.take_over(source)
                target.request()
                self.storage.grow(MIB)
                self.assertEqual(target.resolve(), 'grown')
                self.assert_stays(target, 'io-error')
                target.cmd('cont')
                target.wait_state('running')
                target.wait_written()
                self.check(target)

    def test_other_device_has_an_error(self):
        """The same with a device that is no disk."""
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            window = Path(folder, 'window')
            window.write_bytes(bytes(256 * KIB))
            args = ('-object', 'ondemand-policy,id=pol,granule=4k,chunks=16',
                    '-device', 'ondemand-mem-pci,id=mem0,addr=8.0,policy=pol,'
                    f'file={window}')
            with self.vm('window', args, policy='hold',
                         max_hold_ms=25000) as vm:
                for reg, value in ((0x10, 0xe0000000), (0x14, 0), (4, 2)):
                    vm.out('l', 0xcf8, 0x80000000 | 8 << 11 | reg)
                    vm.out('l', 0xcfc, value)
                following = vm.fill()
                window.write_bytes(b'')
                vm.vm.qtest('readq 0xe0000000')
                vm.wait_state('io-error')
                self.assertTrue(vm.request()['stopped'])
                self.storage.grow(MIB)
                self.assertEqual(vm.resolve(), 'grown')
                self.assert_stays(vm, 'io-error')
                vm.cmd('cont')
                vm.wait_state('running')
                vm.wait_written()
                # and that is forgotten afterwards
                vm.fill(following)
                vm.resolve('denied')
                vm.wait_state('io-error')
                self.storage.grow(MIB)
                self.assertEqual(vm.resolve(), 'grown')
                vm.wait_state('running')
                vm.wait_written()
                self.check(vm)

    def test_old_error(self):
        """An error that was dealt with does not count later."""
        args = ('-blockdev', f'driver=file,node-name=data,'
                f'filename={self.storage.path}',
                '-blockdev', 'driver=blkdebug,node-name=bad,image=data,'
                'inject-error.0.event=pwritev,inject-error.0.errno=5,'
                'inject-error.0.once=on',
                '-blockdev', 'driver=space-guard,node-name=guard,file=bad',
                '-blockdev', 'driver=qcow2,node-name=disk,file=guard')
        with StorageVm('old', args, f'{DISK},werror=stop') as vm:
            vm.start_write(0, 1)
            vm.wait_state('io-error')
            vm.cmd('cont')
            vm.wait_written()
            vm.fill(1)
            vm.wait_state('io-error')
            self.storage.grow(MIB)
            self.assertEqual(vm.resolve(), 'grown')
            vm.wait_state('running')
            vm.wait_written()
            self.check(vm)

    def test_hmp(self):
        with self.vm() as vm:
            def hmp(line):
                return vm.cmd('human-monitor-command', {'command-line': line})
            self.assertIn('No storage', hmp('info block-space-requests'))
            vm.fill()
            vm.wait_state('io-error')
            said = hmp('info block-space-requests')
            self.assertIn('write, open, attempt 1', said)
            number = said.split(':')[0]
            self.assertIn('not-grown',
                          hmp(f'block_space_resolve {number} grown'))
            self.assertIn('Error', hmp(f'block_space_resolve {number} maybe'))
            self.assertIn('Error', hmp('block_space_resolve 99 grown'))

    def refused(self, *args):
        use_qemu_python()
        done = subprocess.run(
            [str(qemu_binary()), '-machine', 'pc', '-accel', 'qtest',
             '-nodefaults', '-nographic', *args], text=True, timeout=20,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, 1, done.stdout)
        return done.stdout

    def test_error_policies_are_refused(self):
        for werror in ('report', 'ignore'):
            said = self.refused(*guarded(self.storage), '-device',
                                f'ide-hd,drive=disk,werror={werror}')
            self.assertIn(f"werror={werror} cannot be used with the "
                          "space-guard node 'guard', it must be", said)

    def test_size_of_a_file_is_refused(self):
        said = self.refused(*guarded(self.storage, verify='size'))
        self.assertIn("'verify' of space-guard is 'size'", said)

    def test_above_the_format_is_refused(self):
        said = self.refused(
            '-blockdev', f'driver=file,node-name=data,'
            f'filename={self.storage.path}',
            '-blockdev', 'driver=qcow2,node-name=disk,file=data',
            '-blockdev', 'driver=space-guard,node-name=guard,file=disk')
        self.assertIn("not above node 'disk' (driver 'qcow2')", said)


class OnLoop(GuardTest):
    kind = Loop

    test_stop = OnTmpfs.test_stop
    test_hold = OnTmpfs.test_hold
    test_answer_races_the_stop = OnTmpfs.test_answer_races_the_stop
    test_migrate = OnTmpfs.test_migrate
    migrate = OnTmpfs.migrate
    test_low_water = OnTmpfs.test_low_water
    refused = OnTmpfs.refused

    def test_raw_is_refused(self):
        args = ('-blockdev', 'driver=host_device,node-name=data,'
                f'filename={self.storage.path}',
                '-blockdev', 'driver=space-guard,node-name=disk,file=data')
        said = self.refused(*args, '-device', 'ide-hd,drive=disk')
        self.assertIn("space-guard node 'disk' has nothing to do: a raw disk",
                      said)


if __name__ == '__main__':
    unittest.main()
