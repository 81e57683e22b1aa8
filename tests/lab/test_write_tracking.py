# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a virtual function that receives migrates; late unplug."""
import time
import unittest

import labtest
import traffic
from traffic import TRAFFIC

ROUNDS = 20 if labtest.LONG else 1

# The guest of a card receives as long as it has it.
SCRIPT = TRAFFIC + '''
up {driver} {network} || exit 1
( while [ -n "$(card {driver})" ]; do
      wget -q -O /dev/null http://10.{network}.0.1:800{network}/down ||
          usleep 100000
  done ) &
result boot $(cat /proc/sys/kernel/random/boot_id)
park receiving
result card "$(card {driver})"
result boot $(cat /proc/sys/kernel/random/boot_id)
'''

PORTS = ['pcie-root-port,id=rp1,chassis=1,slot=1',
         'pcie-root-port,id=rp2,chassis=2,slot=2',
         'virtio-net-pci,netdev=h1,id=net1,bus=rp1,failover=on,'
         'failover-unplug=late,write-tracking-verify=on,romfile=']
ARGS = ['-netdev', 'user,id=h1,restrict=on']


class WriteTracking(traffic.TrafficTest):
    # a host of its own: it uses the e1000e, which has no reset
    lab_name = 'write-tracking'

    def wait_status(self, guest, wanted):
        while True:
            state = guest.vm.cmd('query-migrate')
            if state['status'] == wanted:
                return state
            if state['status'] in ('failed', 'completed'):
                guest.fail(f'its migration: {state}')
            guest.check_time(f'migration {wanted}')
            time.sleep(0.2)

    def migrate(self, source, target):
        """Migrate; return what was known when the guest was asked."""
        source.vm.cmd('migrate-set-parameters', **{'downtime-limit': 2000})
        source.vm.cmd('migrate', uri='unix:/tmp/wt')
        source.wait_event('UNPLUG_PRIMARY')
        passes = source.vm.cmd('query-migrate')
        state = self.wait_status(source, 'completed')
        info, = source.vm.cmd('query-write-tracking')
        stats, = source.vm.cmd('query-stats', target='vm',
                               providers=[{'provider': 'hotpath'}])
        stats = {s['name']: s['value'] for s in stats['stats']}
        print('late unplug:', info, stats, flush=True)
        self.assertEqual(passes['status'], 'active')
        # it was asked after the first pass, not before
        self.assertGreaterEqual(passes['ram']['dirty-sync-count'], 2)
        self.assertGreaterEqual(state['ram']['dirty-sync-count'], 2)
        self.assertGreater(info['traps'], 0)
        self.assertGreater(info['marked-pages'], 0)
        self.assertEqual(info['marked-all'], 0, info)
        self.assertEqual(stats['write-verify-missed-pages'], 0)

    def one(self, name, address, model, driver, network):
        fast = (f'vfio-pci,host={address},romfile=,id=fast,bus=rp2,'
                f'failover_pair_id=net1,write-tracking={model}')
        script = (SCRIPT.replace('{driver}', driver)
                  .replace('{network}', str(network)))
        with self.lab.guest(f'source-{name}', script,
                            devices=[*PORTS, fast], args=ARGS,
                            log='write_track_sync') as source:
            source.wait_parked('receiving')
            with self.lab.guest(f'target-{name}', None, devices=PORTS, args=[
                    *ARGS, '-S', '-incoming', 'unix:/tmp/wt'],
                    log='write_verify_loaded') as target:
                self.migrate(source, target)
                target.vm.cmd('cont')
                target.resume()
                results = target.finish()
                verified = target.trace('write_verify_loaded')
        # each page of RAM was compared; a difference would have ended it
        self.assertEqual(len(verified), 1)
        self.assertRegex(verified[0], r'compared \d{5,} differ 0\b')
        self.assertEqual(results['card'], '')
        self.assertEqual(results['boot'], source.results['boot'])

    def test_igb_vf(self):
        """The card receives until RAM has converged; no page is missed."""
        if ROUNDS == 1:
            print('one migration (HOTPATH_LONG=1 makes 20)', flush=True)
        for number in range(ROUNDS):
            self.one_vf(number)

    @labtest.bounded
    def one_vf(self, number):
        self.serve(2, 4096)
        self.one(f'vf{number}', self.vf(), 'igb', 'igbvf', 2)

    @labtest.long_test('test_igb_vf has the same with other rings')
    def test_e1000e(self):
        """The same with other rings."""
        address = self.lab.run('a=$(pci_find 8086:10d3); to_vfio $a; echo $a')
        self.serve(1, 4096)
        self.one('e1000e', address, 'e1000', 'e1000e', 1)


if __name__ == '__main__':
    unittest.main()
