# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage that grows by LVM: real volumes and thin pools, a guest that writes.

The emulated host has the device mapper and LVM; agent and controller run there.
"""
import hashlib
import json
import time
import unittest

import labtest
from hotpath_paths import report_dir
from lvm_tools import make_disk, storage_disk

MIB = 1 << 20
GUEST_MIB = 20
START_MIB = 8
CHUNK_MIB = 4
DISK_MIB = 64
# the host's own disk is vda; those that the tests bring are in this order
TOOLS, FIRST_PV, SECOND_PV = '/dev/vdb', '/dev/vdc', '/dev/vdd'

SCRIPT = f'''
wait_for /dev/vda || exit 1
i=0
while [ $i -lt {GUEST_MIB} ]; do
    yes "block $i." | dd of=/dev/vda bs=1M seek=$i count=1 iflag=fullblock \\
        oflag=direct 2>/dev/null || exit 2
    i=$((i + 1))
    result done $i
done
echo 3 >/proc/sys/vm/drop_caches
result sum $(dd if=/dev/vda bs=1M count={GUEST_MIB} 2>/dev/null | sha256sum)
'''

PREPARE = f'''
cd /
[ -e /bin/lvm ] || cpio -id <{TOOLS} 2>/dev/null
while read -r module; do
    [ -d /sys/module/$module ] || insmod /modules/storage/$module.ko || exit 1
done </modules/storage/order
mkdir -p /run/lock /tmp/sg/qmp
'''

# what an earlier test left
CLEAN = f'''
for name in controller agent; do
    [ ! -e /tmp/sg/$name.pid ] || kill -KILL $(cat /tmp/sg/$name.pid) || :
done
rm -rf /tmp/sg
mkdir -p /tmp/sg/qmp
vgchange -a n vg || :
for disk in {FIRST_PV} {SECOND_PV}; do
    dd if=/dev/zero of=$disk bs=1M count=4 conv=fsync
    pvcreate -ffy $disk
done
'''

CONTROLLER = '''
qemu-storage-controller -l unix:/tmp/sg/controller -c /tmp/sg/policies \\
    -j /tmp/sg/journal >>/tmp/sg/log 2>&1 </dev/null &
echo $! >/tmp/sg/controller.pid
'''
AGENT = '''
qemu-storage-agent -d /tmp/sg/qmp -C unix:/tmp/sg/controller \\
    >>/tmp/sg/log 2>&1 </dev/null &
echo $! >/tmp/sg/agent.pid
'''
CTL = 'qemu-storage-ctl -C unix:/tmp/sg/controller'

# kill -9 of both, at any time, until told to stop
KILLER = f'''
(
    n=0
    while [ ! -e /tmp/sg/enough ]; do
        usleep $(( ($(od -An -N2 -tu2 /dev/urandom) % 2000) * 1000 ))
        kill -KILL $(cat /tmp/sg/controller.pid)
        {CONTROLLER}
        kill -KILL $(cat /tmp/sg/agent.pid)
        {AGENT}
        n=$((n + 1))
        echo $n >/tmp/sg/kills
    done
    touch /tmp/sg/ended
) >>/tmp/sg/log 2>&1 </dev/null &
'''
KILLER_END = '''
touch /tmp/sg/enough
while [ ! -e /tmp/sg/ended ]; do usleep 50000; done
cat /tmp/sg/kills
'''


def wanted_sum():
    """The sum of what the guest is to write."""
    data = hashlib.sha256()
    for i in range(GUEST_MIB):
        line = f'block {i}.\n'.encode()
        data.update((line * (MIB // len(line) + 1))[:MIB])
    return data.hexdigest()


class StorageLvm(labtest.LabTest):
    lab_name = 'storage'

    @classmethod
    def setUpClass(cls):
        folder = report_dir('lab', cls.lab_name)
        extra = []
        for name, path in (('tools', storage_disk(say=labtest.say)),
                           ('pv1', folder / 'pv1.raw'),
                           ('pv2', folder / 'pv2.raw')):
            if name != 'tools':
                path.unlink(missing_ok=True)
                make_disk(path, 128)
            extra += ['-blockdev', f'driver=file,node-name={name},'
                      f'filename={path},read-only='
                      + ('on' if name == 'tools' else 'off'),
                      '-device', f'virtio-blk-pci,drive={name},serial={name}']
        cls.lab_options = {'extra': extra}
        super().setUpClass()

    def prepare(self, *policies):
        """Make the volume group; start agent and controller."""
        self.lab.run(PREPARE)
        self.lab.run(CLEAN)
        self.lab.run(f'vgcreate -s 4M vg {FIRST_PV}')
        self.lab.put('/tmp/sg/policies',
                     json.dumps({'policies': policies}).encode())
        self.lab.run(CONTROLLER + AGENT)

    def lv_policy(self, **more):
        return {'provider': 'lvm', 'path': '/dev/vg/*',
                'chunk': CHUNK_MIB * MIB, 'max': DISK_MIB * MIB, **more}

    def make_image(self):
        self.lab.run(f'lvcreate -qq -Zn -n disk -L {START_MIB}M vg\n'
                     f'qemu-img create -q -f qcow2 /dev/vg/disk {DISK_MIB}M')

    def guest(self, name, held, layers='driver=qcow2,node-name=disk,file=guard',
              verify='auto'):
        policy = 'hold' if held else 'stop'
        return self.lab.guest(name, SCRIPT, devices=[
            'virtio-blk-pci,drive=disk,id=disk0'], args=[
                '-blockdev', 'driver=host_device,node-name=data,'
                'filename=/dev/vg/disk,cache.direct=on',
                '-blockdev', 'driver=space-guard,node-name=guard,file=data,'
                f'policy={policy},verify={verify}',
                '-blockdev', layers,
                '-chardev', 'socket,id=sg,path=/tmp/sg/qmp/vm.qmp,server=on,'
                'wait=off', '-mon', 'chardev=sg,mode=control'])

    def growths(self, what='begin'):
        records = [json.loads(line.split(' ', 1)[1]) for line in
                   self.lab.run('cat /tmp/sg/journal').splitlines()]
        return [r for r in records if r['what'] == what]

    def size(self, volume):
        return int(self.lab.run('lvs --noheadings --units b --nosuffix -o '
                                f'lv_size {volume}'))

    def check(self, results, volume, image):
        """What was written is there; each request was served once."""
        self.assertEqual(results['sum'].split()[0], wanted_sum())
        growths = self.growths()
        self.assertGreater(len(growths), 2)
        self.assertEqual(len({g['key'] for g in growths}), len(growths))
        for before, after in zip(growths, growths[1:]):
            # the provider may have made it larger: LVM has extents
            self.assertGreaterEqual(after['from'], before['target'])
            self.assertLess(after['from'] - before['target'],
                            CHUNK_MIB * MIB)
        size = self.size(volume)
        self.assertGreaterEqual(size, growths[-1]['target'])
        self.assertLess(size - growths[-1]['target'], CHUNK_MIB * MIB)
        said = self.lab.run(image, 120).split()
        self.assertEqual(said[0], wanted_sum())
        print(f'{len(growths)} growths, to {size // MIB} MiB')

    READ_IMAGE = f'''
        qemu-img check -q -f qcow2 /dev/vg/disk &&
        qemu-img convert -f qcow2 -O raw /dev/vg/disk /tmp/disk.raw &&
        dd if=/tmp/disk.raw bs=1M count={GUEST_MIB} 2>/dev/null | sha256sum
        rm /tmp/disk.raw
    '''
    READ_RAW = (f'dd if=/dev/vg/disk bs=1M count={GUEST_MIB} 2>/dev/null | '
                'sha256sum')

    def run_volume(self, held):
        """qcow2 on a volume that is extended."""
        self.prepare(self.lv_policy())
        self.make_image()
        with self.guest('held' if held else 'stopped', held) as guest:
            results = guest.finish()
        self.check(results, 'vg/disk', self.READ_IMAGE)

    def test_volume_hold(self):
        self.run_volume(True)

    @labtest.long_test('test_volume_hold is run')
    def test_volume_stop(self):
        self.run_volume(False)

    def make_thin(self):
        """An over-committed volume in a pool that runs out of space."""
        self.lab.run(f'lvcreate -qq --type thin-pool -L {START_MIB}M '
                     '--poolmetadatasize 4M -Zn -n pool vg\n'
                     'lvchange -qq --errorwhenfull y vg/pool\n'
                     f'lvcreate -qq --thin -V {DISK_MIB}M -n disk vg/pool')

    def run_thin(self, name, held):
        with self.guest(name, held, 'driver=raw,node-name=disk,file=guard',
                        'probe') as guest:
            results = guest.finish()
        self.check(results, 'vg/pool', self.READ_RAW)

    @labtest.long_test('test_volume_hold is run')
    def test_thin_pool_hold(self):
        """A raw disk, and the pool is what grows."""
        self.prepare(self.lv_policy(resource='vg/pool'))
        self.make_thin()
        self.run_thin('thin', True)

    @labtest.long_test('test_volume_hold is run')
    def test_thin_pool_killed(self):
        """... while agent and controller are killed all the time."""
        self.prepare(self.lv_policy(resource='vg/pool'))
        self.make_thin()
        self.lab.run(KILLER)
        try:
            self.run_thin('killed', False)
        finally:
            kills = int(self.lab.run(KILLER_END))
        self.assertGreater(kills, 0)
        print(f'{kills} times kill -9 of both')

    @labtest.long_test('test_volume_hold is run')
    def test_group_is_full(self):
        """LVM refuses: the guest waits, the reason is told, and it goes on."""
        self.prepare(self.lv_policy())
        self.make_image()
        # leave one growth
        self.lab.run('free=$(vgs --noheadings -o vg_free_count vg)\n'
                     'lvcreate -qq -Zn -an -n rest -l $((free - 1)) vg')
        with self.guest('full', False) as guest:
            while 'nsufficient free space' not in self.lab.run(f'{CTL} list'):
                guest.check_time('a reason')
                time.sleep(0.5)
            self.assertEqual(guest.vm.cmd('query-status')['status'],
                             'io-error')
            self.lab.run(f'vgextend vg {SECOND_PV}')
            results = guest.finish()
        self.check(results, 'vg/disk', self.READ_IMAGE)


if __name__ == '__main__':
    unittest.main()
