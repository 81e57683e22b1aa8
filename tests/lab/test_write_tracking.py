# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a virtual function that receives migrates; late unplug."""
import struct
import time
import unittest

import labtest
import traffic
from traffic import TRAFFIC

ECAM = 0xb0000000       # where a q35's firmware puts configuration space
ENDS = ('failed', 'completed', 'cancelled')
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

    def slot(self, guest):
        """Return what the port of the card says of its slot.

        When the guest does not let go this tells how far it got: the power
        indicator blinks, or is off, say.
        """
        port, = (d for bus in guest.vm.cmd('query-pci') for d in bus['devices']
                 if d['qdev_id'] == 'rp2')
        text = guest.vm.cmd('human-monitor-command', **{
            'command-line': f'xp /256bx {ECAM + (port["slot"] << 15):#x}'})
        config = bytes(int(byte, 16) for line in text.splitlines()
                       for byte in line.split(':')[1].split())
        at = config[0x34]
        while at and config[at] != 0x10:
            at = config[at + 1]
        return 'slot: control {:#06x}, status {:#06x}'.format(
            *struct.unpack_from('<HH', config, at + 0x18))

    def status(self, guest, wanted=None):
        """Return what is known of a migration, which ends as @wanted or not."""
        state = guest.vm.cmd('query-migrate')
        if state['status'] in ENDS and state['status'] != wanted:
            guest.fail(f'its migration: {state}, {self.slot(guest)}')
        return state

    def wait_status(self, guest, wanted):
        while True:
            state = self.status(guest, wanted)
            if state['status'] == wanted:
                return state
            guest.check_time(f'migration {wanted}')
            time.sleep(0.2)

    def migrate(self, source, target):
        """Migrate; return what was known when the guest was asked."""
        source.vm.cmd('migrate-set-parameters', **{'downtime-limit': 2000})
        source.vm.cmd('migrate', uri='unix:/tmp/wt')
        source.wait_event('UNPLUG_PRIMARY', idle=lambda: self.status(source))
        print('asked,', self.slot(source), flush=True)
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
