# SPDX-License-Identifier: GPL-2.0-or-later
"""The small devices: edu and ivshmem assigned, the host's own disk."""
import hashlib
import unittest

import labtest

# bar ID NUMBER: enable the function of an ID, print where its BAR is
BAR = '''
bar()
{
    for f in /sys/bus/pci/devices/*; do
        [ "$(cat $f/vendor)$(cat $f/device)" = "$1" ] || continue
        echo 1 >$f/enable
        sed -n "$(($2 + 1))s/ .*//p" $f/resource
    done
}
'''


@labtest.long_test('test_nvme assigns a device and writes to a disk')
class Devices(labtest.LabTest):

    def test_edu(self):
        """Registers of an assigned device answer in the guest."""
        address = self.lab.run('a=$(pci_find 1234:11e8); to_vfio $a; echo $a')
        script = BAR + '''
            b=$(bar 0x12340x11e8 0)
            result id $(devmem $b 32)
            devmem $((b + 8)) 32 6          # the factorial of
            n=0
            while [ $(($(devmem $((b + 0x20)) 32) & 1)) = 1 ]; do
                n=$((n + 1)); [ $n -lt 100 ] || exit 1; usleep 100000
            done
            result factorial $(($(devmem $((b + 8)) 32)))
        '''
        with self.lab.guest('edu', script, devices=[
                f'vfio-pci,host={address}']) as guest:
            results = guest.finish()
        self.assertEqual(int(results['id'], 16), 0x010000ed)
        self.assertEqual(results['factorial'], '720')

    def test_ivshmem(self):
        """What one guest writes, the next one reads."""
        address = self.lab.run('a=$(pci_find 1af4:1110); to_vfio $a; echo $a')
        find = BAR + 'b=$(bar 0x1af40x1110 2)\n'
        for name, script in (
                ('writer', 'devmem $((b + 0xffffc)) 32 0x600df00d'),
                ('reader', 'result word $(devmem $((b + 0xffffc)) 32)')):
            with self.lab.guest(name, find + script, devices=[
                    f'vfio-pci,host={address}']) as guest:
                results = guest.finish()
        self.assertEqual(int(results['word'], 16), 0x600df00d)

    def test_virtio_blk(self):
        """A guest's virtio disk on the emulated host's: what is written."""
        script = '''
            wait_for /dev/vda || exit 1
            n=0
            while [ $n -lt 64 ]; do
                printf '%-65535s\\n' "block $n"; n=$((n + 1))
            done >/tmp/data
            dd if=/tmp/data of=/dev/vda bs=64k oflag=direct 2>/dev/null || exit 2
        '''
        wanted = b''.join(f'block {n}'.ljust(65535).encode() + b'\n'
                          for n in range(64))
        with self.lab.guest('disk', script, devices=[
                'virtio-blk-pci,drive=disk'], args=[
                    '-blockdev', 'driver=host_device,node-name=disk,'
                    'filename=/dev/vda,cache.direct=on']) as guest:
            guest.finish()
        with open(self.lab.scratch_image, 'rb') as image:
            digest = hashlib.sha256(image.read(len(wanted))).hexdigest()
        self.assertEqual(digest, hashlib.sha256(wanted).hexdigest())


if __name__ == '__main__':
    unittest.main()
