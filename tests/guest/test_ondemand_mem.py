# SPDX-License-Identifier: GPL-2.0-or-later
"""ondemand-mem-pci: a window that is filled and mapped on demand, in guests."""
import os
import re
import socket
import struct
import subprocess
import tempfile
import time
import unittest
from contextlib import contextmanager
from pathlib import Path

from bare_metal import BareGuest, build_image, kvm_probe, run_bare
from guest import Guest, hotpath_counters, is_base_build
from hotpath_paths import qemu_binary, report_dir
from ondemand_guest import MIB, SCRIPT, SIZE, device_options, make_file

CONTENTS = SCRIPT + '''
report first sum 16
report fill fill 7 8
park half
report again sum 16
park counts
'''

THREADS = SCRIPT + '''
report threads threads 4 30
park counts
'''

# Saved at "saved" and loaded again at "later": what was written in between is
# gone, and what was never used still comes from the file.
SNAPSHOT = SCRIPT + '''
report one fill 7 2
park saved
report two fill 9 4
report untouched sum 16
park later
'''


def need_device():
    if is_base_build():
        raise unittest.SkipTest('the unpatched base has no ondemand-mem-pci')


class LinuxGuest(unittest.TestCase):

    def setUp(self):
        need_device()

    def file(self, name):
        path = make_file(report_dir('guest', name))
        self.addCleanup(path.unlink, missing_ok=True)
        return path

    def info(self, guest):
        info, = guest.vm.cmd('query-ondemand-map')
        return info

    def run_contents(self, name, policy):
        with Guest(name, CONTENTS, timeout=300,
                   **device_options(policy, self.file(name))) as guest:
            guest.wait_parked('half')
            guest.resume()
            guest.wait_parked('counts')
            info, counts = self.info(guest), guest.counters('vm')
            guest.resume()
            results = guest.finish().results
        return results, info, counts

    def test_contents(self):
        cold, info, counts = self.run_contents(
            'mem-cold', 'threshold=1000000000')
        self.assertEqual(info['mapped'], 0)
        self.assertEqual(info['resident'], SIZE)
        self.assertEqual(counts['ondemand-map-maps'], 0)
        for threshold in 0, 1000:
            results, info, counts = self.run_contents(
                f'mem-{threshold}', f'threshold={threshold}')
            self.assertEqual(results, cold)
            self.assertGreater(info['mapped'], 0)
            if threshold:
                self.assertGreater(info['traps'], threshold)
            else:
                self.assertEqual(info['mapped'], SIZE)

    def test_threads_over_the_switch(self):
        """Four writers, and atomics, while chunks get filled and mapped."""
        for number, policy in enumerate((
                'threshold=20000,granule=4k,chunks=256',
                'threshold=500,granule=4k,chunks=256')):
            name = f'mem-threads-{number}'
            with Guest(name, THREADS, smp=2, timeout=300,
                       **device_options(policy, self.file(name))) as guest:
                guest.wait_parked('counts')
                counts = guest.counters('vm')
                guest.resume()
                result = guest.finish()
            self.assertEqual(result['threads'],
                             'errors 0 count 120 of 120, 360 of 360')
            self.assertGreaterEqual(counts['ondemand-map-maps'], 1)
            self.assertGreater(counts['ondemand-map-forced-atomic'], 0)

    def hmp(self, guest, line):
        said = guest.vm.cmd('human-monitor-command', command_line=line)
        self.assertEqual(said.strip(), '', f'monitor command "{line}"')

    def test_snapshot(self):
        name = 'mem-snapshot'
        disk = report_dir('guest', name) / 'disk.qcow2'
        subprocess.run([str(qemu_binary('qemu-img')), 'create', '-q', '-f',
                        'qcow2', str(disk), '32M'], check=True)
        self.addCleanup(disk.unlink)
        options = device_options('threshold=1000,granule=4k', self.file(name))
        options['args'] += (
            '-blockdev', f'driver=file,node-name=file,filename={disk}',
            '-blockdev', 'driver=qcow2,node-name=disk,file=file',
            '-device', 'virtio-blk-pci,drive=disk')
        with Guest(name, SNAPSHOT, timeout=300, **options) as guest:
            guest.wait_parked('saved')
            before = self.info(guest)['resident']
            self.hmp(guest, 'savevm middle')
            guest.resume()
            guest.wait_parked('later')
            first = dict(guest.results)
            self.assertEqual(self.info(guest)['resident'], SIZE)
            self.hmp(guest, 'loadvm middle')
            self.assertEqual(self.info(guest)['resident'], before)
            self.assertEqual(self.info(guest)['mapped'], 0)
            guest.results.clear()
            guest.resume()
            guest.wait_result('untouched')
            for key in 'two', 'untouched':
                self.assertEqual(guest.results[key], first[key])


class BareGuests(unittest.TestCase):
    """bare/ondemand.S, under TCG and KVM."""

    def setUp(self):
        need_device()

    def need_kvm(self):
        state, why = kvm_probe()
        if state != 'works':
            raise unittest.SkipTest(f'KVM not used: {why}')

    def run_payload(self, accel, policy, reads=0, hammer=0, more='',
                    cut=None, code=0x1ffa):
        name = f'bare-ondemand-{accel}'
        path = make_file(report_dir('guest', name), MIB)
        self.addCleanup(path.unlink, missing_ok=True)
        image = build_image('ondemand', {'READS': reads, 'HAMMER': hammer,
                                         'CODE': code})
        with BareGuest(name, image, accel=accel, devices=(
                f'ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,file={path}'
                + more,), args=('-S', '-object',
                                f'ondemand-policy,id=pol,{policy}')) as guest:
            if cut is not None:
                os.truncate(path, cut)
            guest.vm.cmd('cont')
            results = guest.wait_end()
            found = hotpath_counters(guest.vm, 'vm')
            status = guest.vm.cmd('query-status')['status']
        self.assertEqual(results['ran'], 3000)
        self.assertEqual(results['changed'], 5000)
        self.assertEqual(results['atomic'], 42)
        self.assertEqual(results['sum'], 0x12345678 * reads & 0xffffffff)
        with open(path, 'rb') as f:
            f.seek(0x1234)
            self.assertEqual(results['first'], f.read(1)[0])
        self.assertEqual(status, 'running')
        return results, found

    def check_race(self, accel):
        """Two processors write while granules are filled and chunks mapped."""
        name = f'bare-race-{accel}'
        path = make_file(report_dir('guest', name), MIB)
        self.addCleanup(path.unlink, missing_ok=True)
        words = list(struct.unpack(f'<{MIB // 4}I', path.read_bytes()))
        for number in range(len(words)):
            if number % 8 < 2:
                words[number] = number * 0x9e3779b1 & 0xffffffff
        checksum = 0
        for word in words:
            checksum = (checksum << 5 | checksum >> 27) + word & 0xffffffff
        for policy in ('threshold=50,granule=4k,chunks=16',
                       'threshold=1,granule=4k,chunks=256',
                       'threshold=3000,granule=64k,chunks=4',
                       'threshold=auto,granule=8k'):
            found = {}
            results = run_bare(
                'race', name=name, accel=accel, smp=2,
                devices=('ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,'
                         f'file={path}',),
                args=('-object', f'ondemand-policy,id=pol,{policy}'),
                at_end=lambda g: found.update(hotpath_counters(g.vm, 'vm')))
            self.assertEqual(results['errors'], 0, policy)
            self.assertEqual(results['checksum'], checksum, policy)
            self.assertGreater(found['ondemand-map-maps'], 0, policy)

    def test_race_tcg(self):
        self.check_race('tcg')

    def test_race_kvm(self):
        self.need_kvm()
        self.check_race('kvm')

    def check_eject(self, accel):
        """The guest ejects the device while its other processor uses it."""
        name = f'bare-eject-{accel}'
        path = make_file(report_dir('guest', name), MIB)
        self.addCleanup(path.unlink, missing_ok=True)
        for number in range(4):
            left = []

            def at_end(guest, left=left):
                event = guest.vm.event_wait('DEVICE_DELETED', timeout=20)
                left += [event, guest.vm.cmd('query-ondemand-map')]
            results = run_bare(
                'eject', name=name, accel=accel, machine='pc', smp=2,
                defines={'READS': 20 + 500 * number},
                devices=('ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,'
                         f'file={path}',),
                args=('-object', 'ondemand-policy,id=pol,threshold=2,'
                      'granule=4k,chunks=16,max-commits-per-s=1000'),
                at_end=at_end)
            self.assertIsNotNone(left[0], 'no event')
            self.assertEqual(left[1], [])
            self.assertEqual(results['after'], 0)   # nothing is there

    def test_eject_tcg(self):
        self.check_eject('tcg')

    def test_eject_kvm(self):
        self.need_kvm()
        self.check_eject('kvm')

    def check_forced(self, accel):
        """Code is mapped long before the threshold."""
        _, counts = self.run_payload(accel, 'threshold=1000000000')
        self.assertEqual(counts['ondemand-map-forced-fetch'], 1)
        self.assertEqual(counts['ondemand-map-maps'], 1)
        self.assertLess(counts['ondemand-map-traps'], 100000)

    def check_border(self, accel):
        """An instruction lies in two chunks: of one, of the other, of both.

        It is changed while one is mapped and the other is not.
        """
        for rate in 1, 50, 1000:
            _, counts = self.run_payload(
                accel, 'threshold=1000000000,granule=4k,chunks=256,'
                f'max-commits-per-s={rate}', code=0x1ffc)
            self.assertGreater(counts['ondemand-map-forced-fetch'], 0)

    def check_writes(self, accel):
        """What is written while the RAM is sent is what arrives.

        The guest writes a number to RAM, then to the window, to 16 pages in
        turn, again and again.  So a page of the window is never behind its page
        of RAM by more than one.
        """
        name = f'bare-writes-{accel}'
        device = self.window_device(name)
        stream = report_dir('guest', name) / 'stream'
        self.addCleanup(stream.unlink, missing_ok=True)
        image = build_image('writes', {})
        policy = ('-object', 'ondemand-policy,id=pol,granule=4k,threshold=5')
        with BareGuest(name, image, accel=accel, devices=(device,),
                       args=policy) as guest:
            vm = guest.vm
            guest.wait_end('writing')
            self.wait_for(lambda: vm.cmd('query-ondemand-map')[0]['mapped']
                          >= 0x10000)
            # several passes: slow, with nothing that may be left to the end
            vm.cmd('migrate-set-parameters', **{'max-bandwidth': MIB,
                                                'downtime-limit': 1})
            vm.cmd('migrate', uri=f'file:{stream}')
            self.wait_for(lambda: vm.cmd('query-migrate').get(
                'ram', {}).get('dirty-sync-count', 0) > 3)
            vm.cmd('migrate-set-parameters', **{'max-bandwidth': 1 << 40,
                                                'downtime-limit': 2000})
            self.wait_for(lambda: vm.cmd('query-migrate')['status']
                          == 'completed')
        with self.arrived(name, image, stream, accel=accel, devices=(device,),
                          args=policy) as vm:
            ram, mem = (self.pages(vm, stream.with_name(key), address)
                        for key, address in (('ram', 0x200000),
                                             ('mem', 0xe0000000)))
        self.assertGreater(min(mem), 0)
        for page, (first, second) in enumerate(zip(ram, mem)):
            self.assertIn(first - second, (0, 1), f'page {page}')

    def check_snapshot(self, accel):
        """A background snapshot is taken while the guest brings pages in."""
        pages, name = 32768, f'bare-snapshot-{accel}'
        path = report_dir('guest', name) / 'numbers'
        stream = path.with_name('stream')
        for file in path, stream:
            self.addCleanup(file.unlink, missing_ok=True)
        path.write_bytes(b''.join(struct.pack('<Q4088x', number + 1)
                                  for number in range(pages)))
        image = build_image('walk', {'SPIN': 3000, 'PAGES': pages})
        device = f'ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,file={path}'
        policy = ('-object',
                  'ondemand-policy,id=pol,granule=4k,threshold=1000000000')
        for number in range(4):
            stream.unlink(missing_ok=True)
            with BareGuest(name, image, accel=accel, devices=(device,),
                           args=policy) as guest:
                vm = guest.vm
                try:
                    vm.cmd('migrate-set-capabilities', capabilities=[
                        {'capability': 'background-snapshot', 'state': True}])
                except Exception as err:    # of a host without it
                    self.skipTest(str(err))
                vm.cmd('migrate-set-parameters', **{'max-bandwidth': 1 << 40})
                guest.wait_end('begin')
                self.wait_for(lambda: vm.cmd('query-ondemand-map')[0][
                    'resident'] > MIB * (number + 1))
                vm.cmd('migrate', uri=f'file:{stream}')
                self.wait_for(lambda: vm.cmd('query-migrate')['status']
                              == 'completed')
            with self.arrived(name, image, stream, accel=accel,
                              devices=(device,), args=policy) as vm:
                resident = vm.cmd('query-ondemand-map')[0]['resident']
                numbers = self.pages(vm, path.with_name('memory'), 0xa0000000,
                                     resident)
            self.assertGreater(resident, MIB * (number + 1))
            self.assertEqual(numbers, list(range(1, len(numbers) + 1)))

    @contextmanager
    def arrived(self, name, image, stream, args, **options):
        """A VM that was saved to a file, loaded and not running."""
        with BareGuest(name, image, args=(*args, '-S', '-incoming',
                                          f'file:{stream}'),
                       **options) as guest:
            self.wait_for(lambda: guest.vm.cmd('query-status')['status']
                          != 'inmigrate')
            yield guest.vm

    def wait_for(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def pages(self, vm, path, address, size=0x10000):
        """Return the first word of each page."""
        self.addCleanup(path.unlink, missing_ok=True)
        vm.cmd('pmemsave', val=address, size=size, filename=str(path))
        return [word for word, in struct.iter_unpack(
            '<I4092x', path.read_bytes())]

    def check_threshold(self, accel):
        _, counts = self.run_payload(accel, 'threshold=100', reads=5000)
        self.assertEqual(counts['ondemand-map-maps'], 1)
        self.assertGreater(counts['ondemand-map-traps'], 100)

    def check_hammer(self, accel):
        """A loop of reads that cannot be served: the VM goes on."""
        results, counts = self.run_payload(
            accel, 'threshold=10,granule=4k,chunks=256', hammer=3000,
            more=',rerror=report', cut=0x8000)
        self.assertEqual(results['hammered'], 0xffffffff)
        self.assertGreater(counts['ondemand-map-refused-backing'], 0)

    def test_forced_tcg(self):
        self.check_forced('tcg')

    def test_forced_kvm(self):
        self.need_kvm()
        self.check_forced('kvm')

    def test_code_at_a_border_tcg(self):
        self.check_border('tcg')

    def test_code_at_a_border_kvm(self):
        self.need_kvm()
        self.check_border('kvm')

    def window_device(self, name):
        path = make_file(report_dir('guest', name), MIB)
        self.addCleanup(path.unlink, missing_ok=True)
        return f'ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,file={path}'

    def test_writes_while_migrating_tcg(self):
        self.check_writes('tcg')

    def test_writes_while_migrating_kvm(self):
        self.need_kvm()
        self.check_writes('kvm')

    def test_background_snapshot_tcg(self):
        self.check_snapshot('tcg')

    def test_background_snapshot_kvm(self):
        self.need_kvm()
        self.check_snapshot('kvm')

    def test_threshold_tcg(self):
        self.check_threshold('tcg')

    def test_threshold_kvm(self):
        self.need_kvm()
        self.check_threshold('kvm')

    def check_stop(self, accel):
        """The VM stops at a read that fails, and goes on when it need not."""
        name = f'bare-stop-{accel}'
        path = make_file(report_dir('guest', name), MIB)
        self.addCleanup(path.unlink, missing_ok=True)
        whole = path.read_bytes()
        image = build_image('ondemand', {'READS': 0, 'HAMMER': 3000})
        with BareGuest(name, image, accel=accel, devices=(
                f'ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,file={path}',),
                       args=('-S', '-object', 'ondemand-policy,id=pol,'
                             'threshold=1000000,granule=4k')) as guest:
            os.truncate(path, 0x8000)
            guest.vm.cmd('cont')
            guest.wait_end('first')
            deadline = time.monotonic() + 20
            while guest.vm.cmd('query-status')['status'] != 'io-error':
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.02)
            event = guest.vm.event_wait('ONDEMAND_MAP_ERROR', timeout=5)
            self.assertEqual(event['data']['action'], 'stop')
            self.assertEqual(event['data']['offset'], 0x8000)
            path.write_bytes(whole)
            guest.vm.cmd('cont')
            results = guest.wait_end()
        self.assertEqual(results['hammered'],
                         int.from_bytes(whole[0x8000:0x8004], 'little'))
        self.assertEqual(results['ran'], 3000)

    def test_stop_tcg(self):
        self.check_stop('tcg')

    def test_stop_kvm(self):
        self.need_kvm()
        self.check_stop('kvm')

    def gdb(self, conn, packet):
        """Send a packet of gdb's protocol; return the answer."""
        data = packet.encode()
        conn.sendall(b'$%s#%02x' % (data, sum(data) & 0xff))
        answer = b''
        while not re.search(rb'\$[^#]*#..', answer):
            more = conn.recv(4096)
            self.assertTrue(more, f'gdb server is gone after "{packet}"')
            answer += more
        conn.sendall(b'+')
        return re.search(rb'\$([^#]*)#', answer)[1].decode()

    def test_debugger(self):
        """It writes to what is cold, and does not count."""
        folder = report_dir('guest', 'bare-debugger')
        path = make_file(folder, MIB)
        self.addCleanup(path.unlink, missing_ok=True)
        socket_path = tempfile.mktemp(prefix='hotgdb-', dir='/tmp')
        self.addCleanup(lambda: Path(socket_path).unlink(missing_ok=True))
        image = build_image('ondemand', {'READS': 0, 'HAMMER': 0})
        with BareGuest('bare-debugger', image, devices=(
                'ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,'
                f'file={path}',), args=(
                    '-object', 'ondemand-policy,id=pol,threshold=1000000000',
                    '-gdb', f'unix:path={socket_path},server=on,wait=off')
                       ) as guest:
            guest.wait_end()
            before = hotpath_counters(guest.vm, 'vm')
            with socket.socket(socket.AF_UNIX) as conn:
                conn.settimeout(20)
                conn.connect(socket_path)
                self.assertEqual(self.gdb(conn, 'Me0080002,4:11223344'), 'OK')
                self.assertEqual(self.gdb(conn, 'me0080001,6')[2:10],
                                 '11223344')
                self.assertEqual(self.gdb(conn, 'D'), 'OK')
            said = guest.vm.cmd('human-monitor-command',
                                command_line='xp /4xb 0xe0080002')
            self.assertIn('0x11 0x22 0x33 0x44', said)
            after = hotpath_counters(guest.vm, 'vm')
        self.assertEqual(after['ondemand-map-maps'],
                         before['ondemand-map-maps'])
        # the one of the monitor
        self.assertEqual(after['ondemand-map-traps'] - 1,
                         before['ondemand-map-traps'])

    def test_hammer_tcg(self):
        self.check_hammer('tcg')

    def test_hammer_kvm(self):
        self.need_kvm()
        self.check_hammer('kvm')


if __name__ == '__main__':
    unittest.main()
