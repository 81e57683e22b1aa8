# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts of the host, counted per CPU and name, and moved."""
import unittest

import labtest
import traffic
from traffic import TRAFFIC

# an interrupt in flight, or the housekeeping of a card, may still arrive
STRAY = 5


class Interrupts(traffic.TrafficTest):

    def counts(self, address):
        """Return {cpu: device interrupts of a function}."""
        sums = {}
        for counts in self.lab.interrupts_by_cpu(
                rf'vfio-msix?\[\d+\]\({address}\)').values():
            for cpu, count in counts.items():
                sums[cpu] = sums.get(cpu, 0) + count
        return sums

    def test_device_interrupts_go_where_they_are_sent(self):
        address, digest = self.vf(), self.serve(2, 1024)
        rounds = ''.join(f'''
            park {cpu}
            wget -q -O /tmp/down http://10.2.0.1:8002/down || exit 3
            [ "$(sha256sum </tmp/down)" = "{digest}  -" ] || exit 4
            park done-{cpu}
        ''' for cpu in (0, 1))
        with self.lab.guest('moved-irq', TRAFFIC + 'up igbvf 2 || exit 1\n'
                            + rounds, devices=[
                                f'vfio-pci,host={address},romfile=']) as guest:
            for cpu in 0, 1:
                guest.wait_parked(str(cpu))
                for irq in self.lab.irqs(address):
                    self.lab.move_irq(irq, cpu)
                before = self.counts(address)
                guest.resume()
                guest.wait_parked(f'done-{cpu}')
                after = self.counts(address)
                guest.resume()
                here = after[cpu] - before[cpu]
                other = sum(after.values()) - sum(before.values()) - here
                # moderated: the slower the host, the fewer they are
                self.assertGreater(here, 4 * STRAY, (before, after))
                self.assertLessEqual(other, STRAY, (before, after))
            guest.finish()

    def test_moving_a_running_vcpu_costs_ipis(self):
        """And the thread of the vCPU runs where it was put."""
        with self.lab.guest('moved-vcpu', 'park ready\nwhile :; do :; done',
                            smp=1) as guest:
            guest.wait_parked('ready')
            guest.resume()
            thread, = guest.vcpu_threads()
            before = self.lab.ipis()
            for i in range(10):
                self.lab.move_thread(thread, i & 1)
                # field 39 of stat; the name before may have blanks
                fields = self.lab.run(
                    'usleep 20000; sed "s/.*) //" '
                    f'/proc/{guest.pid}/task/{thread}/stat').split()
                self.assertEqual(fields[36], str(i & 1))
            after = self.lab.ipis()
        grown = {kind: {cpu: after[kind][cpu] - before[kind][cpu]
                        for cpu in after[kind]} for kind in after}
        self.assertGreater(sum(grown['RES'].values())
                           + sum(grown['CAL'].values()), 0, grown)

    @labtest.long_test('without an assigned device')
    def test_guest_goes_on_when_its_cpu_goes(self):
        with self.lab.guest('offline', 'park ready\nresult still here'
                            ) as guest:
            guest.wait_parked('ready')
            self.lab.move_thread(guest.vcpu_threads()[0], 1)
            self.lab.online(1, False)
            try:
                self.assertNotIn(1, self.lab.ipis()['RES'])
                guest.resume()
                self.assertEqual(guest.finish()['still'], 'here')
            finally:
                self.lab.online(1)
        self.assertEqual(list(self.lab.ipis()['RES'])[:2], [0, 1])


if __name__ == '__main__':
    unittest.main()
