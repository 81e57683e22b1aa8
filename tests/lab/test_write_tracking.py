# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a virtual function that receives migrates; late unplug."""
import time
import unittest

import traffic
from traffic import TRAFFIC

RAM_MIB = 256           # of an inner guest
PIECE_MIB = 64          # the emulated host's memory does not hold all twice

SCRIPT = TRAFFIC + '''
up igbvf 2 || exit 1
( while [ -n "$(card igbvf)" ]; do
      wget -q -O /dev/null http://10.2.0.1:8002/down || usleep 100000
  done ) &
result boot $(cat /proc/sys/kernel/random/boot_id)
park receiving
result card "$(card igbvf)"
result boot $(cat /proc/sys/kernel/random/boot_id)
'''

PORTS = ['pcie-root-port,id=rp1,chassis=1,slot=1',
         'pcie-root-port,id=rp2,chassis=2,slot=2',
         'virtio-net-pci,netdev=h1,id=net1,bus=rp1,failover=on,'
         'failover-unplug=late,romfile=']
ARGS = ['-netdev', 'user,id=h1,restrict=on']


class WriteTracking(traffic.TrafficTest):

    def wait_status(self, guest, wanted):
        while True:
            state = guest.vm.cmd('query-migrate')
            if state['status'] == wanted:
                return state
            self.assertNotIn(state['status'], ('failed', 'completed'), state)
            guest.check_time(f'migration {wanted}')
            time.sleep(0.2)

    def different_pages(self, source, target):
        """Compare the memory of two stopped guests, page by page."""
        count = 0
        for start in range(1, RAM_MIB, PIECE_MIB):
            size = min(PIECE_MIB, RAM_MIB - start) << 20
            for name, guest in (('a', source), ('b', target)):
                guest.vm.cmd('pmemsave', val=start << 20, size=size,
                             filename=f'/tmp/ram-{name}')
            count += int(self.lab.run(
                'cmp -l /tmp/ram-a /tmp/ram-b | '
                "awk '{ print int(($1 - 1) / 4096) }' | uniq | wc -l\n"
                'rm /tmp/ram-a /tmp/ram-b'))
        return count

    def test_late_unplug(self):
        """The card receives until RAM has converged; no page is missed."""
        address = self.vf()
        self.serve(2, 4096)
        fast = (f'vfio-pci,host={address},romfile=,id=fast,bus=rp2,'
                'failover_pair_id=net1,write-tracking=igb')
        with self.lab.guest('source', SCRIPT, devices=[*PORTS, fast],
                            args=ARGS, log='write_track_sync') as source:
            source.wait_parked('receiving')
            with self.lab.guest('target', None, devices=PORTS, args=[
                    *ARGS, '-S', '-incoming', 'unix:/tmp/wt']) as target:
                source.vm.cmd('migrate-set-parameters',
                              **{'downtime-limit': 2000})
                source.vm.cmd('migrate', uri='unix:/tmp/wt')
                source.wait_event('UNPLUG_PRIMARY')
                passes = source.vm.cmd('query-migrate')
                state = self.wait_status(source, 'completed')
                info, = source.vm.cmd('query-write-tracking')
                print('late unplug:', info, flush=True)
                missed = self.different_pages(source, target)
                print('late unplug: pages that differ:', missed, flush=True)
                target.vm.cmd('cont')
                target.resume()
                results = target.finish()
        self.assertEqual(passes['status'], 'active')
        # it was asked after the first pass, not before
        self.assertGreaterEqual(passes['ram']['dirty-sync-count'], 2)
        self.assertGreaterEqual(state['ram']['dirty-sync-count'], 2)
        self.assertGreater(info['traps'], 0)
        self.assertGreater(info['marked-pages'], 0)
        self.assertEqual(info['marked-all'], 0, info)
        self.assertEqual(missed, 0)
        self.assertEqual(results['card'], '')
        self.assertEqual(results['boot'], source.results['boot'])


if __name__ == '__main__':
    unittest.main()
