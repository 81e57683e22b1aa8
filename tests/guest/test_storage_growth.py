# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole loop: guard, agent, controller, storage that really grows.

STORAGE_CYCLES says how often storage runs out while agent and controller are
killed.  Without it that is 200 times with HOTPATH_LONG=1, else 200 times where
writes are held in a file and 50 times for the other ways.  STORAGE_SEED repeats
the kills of a run, as far as the host's timing lets it.
"""
import hashlib
import os
import random
import threading
import time
import unittest

from guest import Guest
from storage_daemons import Daemons, daemon_binary
from storage_vm import (CLUSTER_SECTORS, KIB, MIB, Loop, StorageVm, Tmpfs,
                        check_image, guarded, make_image, need_root)

START = 2 * MIB
CHUNK = 256 * KIB
GUEST_MIB = 24
LONG = os.environ.get('HOTPATH_LONG') == '1'


def cycles(usual):
    """How often storage runs out while agent and controller are killed."""
    return int(os.environ.get('STORAGE_CYCLES') or (200 if LONG else usual))


def new_seed():
    """What the kills of a run follow from; printed before it begins."""
    seed = int(os.environ.get('STORAGE_SEED') or random.randrange(1 << 32))
    print(f'STORAGE_SEED={seed}', flush=True)
    return seed


def policy(storage, **more):
    """A policy that grows the storage."""
    return {'provider': 'loop' if storage.driver == 'host_device' else 'tmpfs',
            'path': f'{storage.dir}/*' if storage.driver == 'file'
                    else str(storage.path),
            'chunk': CHUNK, 'align': 4096, 'max': 1024 * MIB, **more}


class Killer(threading.Thread):
    """Kills the agent or the controller at random, and starts it again."""

    def __init__(self, daemons, seed):
        super().__init__(daemon=True)
        self.daemons = daemons
        self.rand = random.Random(seed)
        self.kills = 0
        self.over = threading.Event()
        self.error = None

    def run(self):
        try:
            while not self.over.wait(self.rand.random() * 0.12):
                if self.rand.random() < 0.5:
                    self.daemons.kill(self.daemons.agent)
                    self.daemons.start_agent()
                else:
                    self.daemons.kill(self.daemons.controller)
                    self.daemons.start_controller()
                self.kills += 1
        except Exception as error:      # pylint: disable=broad-except
            self.error = error

    def end(self):
        """Stop killing; both run afterwards."""
        self.over.set()
        self.join()
        if self.error:
            raise self.error


class Growth(unittest.TestCase):
    kind = Tmpfs

    def setUp(self):
        need_root()
        daemon_binary('qemu-storage-agent')
        self.storage = self.kind(START)
        self.addCleanup(self.storage.close)
        make_image(self.storage)
        self.daemons = Daemons([policy(self.storage)])
        self.addCleanup(self.daemons.close)

    def vm(self, name='vm', **options):
        qmp = f'unix:{self.daemons.qmp}/{name}.qmp,server=on,wait=off'
        return StorageVm(name, guarded(self.storage, **options)
                         + ('-qmp', qmp))

    def start(self):
        self.daemons.start_controller()
        self.daemons.start_agent()

    def write_until(self, vm, growths, first=0):
        """Write cluster after cluster until it has grown so often."""
        done = first
        while len(self.daemons.growths()) < growths:
            vm.start_write(done * CLUSTER_SECTORS, done % 255 + 1)
            vm.wait_written()
            done += 1
        return done

    def check_growths(self, size):
        """Each request was served once, and led where the journal says."""
        growths = self.daemons.growths()
        self.assertEqual(len({g['key'] for g in growths}), len(growths))
        for before, after in zip(growths, growths[1:]):
            self.assertEqual(before['target'], after['from'])
        self.assertEqual(size, growths[-1]['target'])
        return len(growths)

    def size(self):
        """How large the storage is now."""
        if self.storage.driver == 'file':
            stat = os.statvfs(self.storage.dir)
            return stat.f_blocks * stat.f_frsize
        return os.stat(self.storage.file).st_size

    def test_grows(self):
        for held in (True, False):
            with self.subTest(held=held), \
                 self.vm(policy='hold' if held else 'stop') as vm:
                self.start()
                before = len(self.daemons.growths()) \
                    if self.daemons.journal.exists() else 0
                self.write_until(vm, before + 5)
                vm.wait_state('running')
                stats = vm.stats()
                self.assertEqual(stats['failed'], 0 if held else 5)
                vm.vm.shutdown()
                check_image(self, self.storage, vm.written)
                self.check_growths(self.size())
                for process in (self.daemons.agent, self.daemons.controller):
                    self.daemons.kill(process)

    def killed(self, times, **options):
        self.start()
        killer = Killer(self.daemons, new_seed())
        with self.vm(**options) as vm:
            killer.start()
            try:
                self.write_until(vm, times)
            finally:
                killer.end()
            vm.wait(lambda: not vm.requests(), 'all is resolved')
            vm.wait_state('running')
            stats = vm.stats()
            vm.vm.shutdown()
            check_image(self, self.storage, vm.written)
        grown = self.check_growths(self.size())
        print(f'{grown} growths, each once, {killer.kills} times kill -9, '
              f'{len(vm.written)} clusters, none lost; {stats}')

    def test_killed_hold(self):
        self.killed(cycles(200), policy='hold', max_hold_ms=2000)

    def test_killed_stop(self):
        self.killed(cycles(50), policy='stop')

    def test_agent_comes_late(self):
        """A request from before the agent's time is found."""
        with self.vm() as vm:
            vm.fill()
            vm.wait_state('io-error')
            self.start()
            vm.wait_state('running')
            vm.wait_written()

    def test_cap(self):
        self.daemons.configure([policy(self.storage, max=START + CHUNK)])
        self.start()
        with self.vm(policy='hold') as vm:
            following = self.write_until(vm, 1)
            vm.fill(following)
            vm.wait_state('io-error')
            self.assertEqual(vm.request()['state'], 'denied')
            self.assertIn('the maximum is reached',
                          self.daemons.ctl('history')[1])
            # the operator allows more, and resumes it
            self.daemons.configure([policy(self.storage)])
            self.daemons.kill(self.daemons.controller)
            self.daemons.start_controller()
            vm.cmd('cont')
            vm.wait_written()
            vm.wait_state('running')

    def test_one_process(self):
        """The agent is the controller, too."""
        self.daemons.agent = self.daemons._start(
            daemon_binary('qemu-storage-agent'), '-d', self.daemons.qmp, '-c',
            self.daemons.config, '-j', self.daemons.journal)
        with self.vm(policy='hold') as vm:
            while not self.daemons.journal.exists():
                time.sleep(0.01)
            self.write_until(vm, 3)

    def test_ten_machines(self):
        """Each has a request of its own; all are served."""
        self.start()
        others = []
        try:
            for i in range(10):
                storage = Tmpfs(START)
                make_image(storage)
                others.append((storage, StorageVm(
                    f'vm{i}', guarded(storage, policy='hold') + (
                        '-qmp', f'unix:{self.daemons.qmp}/vm{i}.qmp,'
                        'server=on,wait=off'))))
            self.daemons.kill(self.daemons.controller)
            self.daemons.configure([policy(s) for s, _ in others])
            self.daemons.start_controller()
            for _, vm in others:
                vm.__enter__()
            for _, vm in others:
                vm.fill(0, 20)
        except AssertionError as error:
            if 'does not fill up' not in str(error):
                raise
        finally:
            for storage, vm in others:
                vm.__exit__()
                storage.close()


class GrowthOnLoop(unittest.TestCase):
    kind = Loop

    setUp = Growth.setUp
    vm = Growth.vm
    start = Growth.start
    write_until = Growth.write_until
    check_growths = Growth.check_growths
    size = Growth.size
    test_grows = Growth.test_grows
    killed = Growth.killed

    def test_killed_hold(self):
        self.killed(cycles(50), policy='hold', max_hold_ms=2000)

    def test_killed_stop(self):
        self.killed(cycles(50), policy='stop')


SCRIPT = f'''
wait_for /dev/vda || exit 1
i=0
while [ $i -lt {GUEST_MIB} ]; do
    yes "block $i." | dd of=/dev/vda bs=1M seek=$i count=1 iflag=fullblock \\
        oflag=direct 2>/dev/null || exit 2
    i=$((i + 1))
done
sync
echo 3 >/proc/sys/vm/drop_caches
result sum $(dd if=/dev/vda bs=1M count={GUEST_MIB} 2>/dev/null | sha256sum)
'''


def wanted_sum():
    """The sum of what the guest is to write."""
    data = hashlib.sha256()
    for i in range(GUEST_MIB):
        line = f'block {i}.\n'.encode()
        data.update((line * (MIB // len(line) + 1))[:MIB])
    return data.hexdigest()


class LinuxGuest(unittest.TestCase):

    def run_guest(self, kind, held):
        need_root()
        daemon_binary('qemu-storage-agent')
        storage = kind(START)
        self.addCleanup(storage.close)
        make_image(storage)
        daemons = Daemons([policy(storage, chunk=MIB)])
        self.addCleanup(daemons.close)
        daemons.start_controller()
        daemons.start_agent()
        killer = Killer(daemons, new_seed())
        args = guarded(storage, policy='hold' if held else 'stop') + (
            '-device', 'virtio-blk-pci,drive=disk,id=disk0',
            '-qmp', f'unix:{daemons.qmp}/guest.qmp,server=on,wait=off')
        with Guest(f'storage-{kind.__name__}-{held}', SCRIPT,
                   args=args) as guest:
            killer.start()
            try:
                result = guest.finish()
            finally:
                killer.end()
        self.assertEqual(result['sum'].split()[0], wanted_sum())
        growths = daemons.growths()
        self.assertGreater(len(growths), GUEST_MIB // 2)
        self.assertEqual(len({g['key'] for g in growths}), len(growths))
        print(f'{len(growths)} growths, {killer.kills} times kill -9')

    def test_tmpfs_hold(self):
        self.run_guest(Tmpfs, True)

    def test_tmpfs_stop(self):
        self.run_guest(Tmpfs, False)

    def test_loop_hold(self):
        self.run_guest(Loop, True)

    def test_loop_stop(self):
        self.run_guest(Loop, False)


if __name__ == '__main__':
    unittest.main()
