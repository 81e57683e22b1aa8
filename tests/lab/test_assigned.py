# SPDX-License-Identifier: GPL-2.0-or-later
"""Assigned devices on unmodified paths: traffic, disk, interrupts, unplug."""
import hashlib
import unittest

import labtest
import traffic
from traffic import TRAFFIC


class Assigned(traffic.TrafficTest):

    def test_e1000e(self):
        # used by this test only: it has no reset, and its old ring would
        # write into the memory of the next guest
        address = self.lab.run('a=$(pci_find 8086:10d3); to_vfio $a; echo $a')
        counts = self.nic('e1000e', address, 'e1000e', 1)
        self.assertGreaterEqual(len(counts), 2, counts)

    def test_igb_vf(self):
        self.nic('igbvf', self.vf(), 'igbvf', 2)

    @labtest.long_test('test_igb_vf has the same traffic')
    def test_vf_again_after_a_kill(self):
        """The function is reset: the next guest gets it in order."""
        address = self.vf()
        device = f'vfio-pci,host={address},romfile='
        with self.lab.guest('killed', TRAFFIC + 'up igbvf 2 && park up\n',
                            devices=[device]) as guest:
            guest.wait_parked('up')
            guest.kill()
            guest.wait_exit()
        self.nic('after-kill', address, 'igbvf', 2, size_kib=1024)

    def test_unplug_and_plug(self):
        address, digest = self.vf(1), self.serve(2, 1024)
        script = TRAFFIC + '''
            up igbvf 2 || exit 1
            park plugged
            n=0
            while [ -n "$(card igbvf)" ]; do
                n=$((n + 1)); [ $n -lt 200 ] || exit 2; usleep 100000
            done
            park gone
            up igbvf 2 || exit 3
            traffic 2 1024 || exit 4
        '''
        device = {'driver': 'vfio-pci', 'host': address, 'id': 'vf',
                  'bus': 'rp', 'romfile': ''}
        with self.lab.guest('unplug', script, devices=[
                'pcie-root-port,id=rp,chassis=1,slot=1',
                f'vfio-pci,host={address},id=vf,bus=rp,romfile=']) as guest:
            guest.wait_parked('plugged')
            guest.vm.cmd('device_del', id='vf')
            guest.resume()
            guest.wait_parked('gone')
            guest.wait_event('DEVICE_DELETED', device='vf')
            self.assertEqual(self.lab.interrupts(rf'\({address}\)'), {})
            self.receive(2)
            guest.vm.cmd('device_add', **device)
            guest.resume()
            self.check_traffic(guest, 2, digest)
            guest.finish()

    def test_nvme(self):
        """What the guest writes is on the disk behind the controller."""
        address = self.lab.run('a=$(pci_find 1b36:0010); to_vfio $a; echo $a')
        blocks = 64
        script = f'''
            wait_for /dev/nvme0n1 || exit 1
            n=0
            while [ $n -lt {blocks} ]; do
                printf '%-65535s\\n' "block $n"
                n=$((n + 1))
            done >/tmp/data
            dd if=/tmp/data of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null || exit 2
            result digest $(dd if=/dev/nvme0n1 bs=64k count={blocks} iflag=direct \\
                2>/dev/null | sha256sum | cut -d' ' -f1)
            park counts
        '''
        wanted = b''.join(f'block {n}'.ljust(65535).encode() + b'\n'
                          for n in range(blocks))
        with self.lab.guest('nvme', script, devices=[
                f'vfio-pci,host={address}']) as guest:
            guest.wait_parked('counts')
            counts = self.lab.interrupts(rf'vfio-msix\[\d+\]\({address}\)')
            guest.resume()
            results = guest.finish()
        self.assertGreater(sum(counts.values()), blocks / 2, counts)
        self.assertEqual(results['digest'], hashlib.sha256(wanted).hexdigest())
        with open(self.lab.nvme_image, 'rb') as image:
            self.assertEqual(image.read(len(wanted)), wanted)


if __name__ == '__main__':
    unittest.main()
