# SPDX-License-Identifier: GPL-2.0-or-later
"""Bare-metal payload on edu and pci-testdev, under TCG and KVM."""
import unittest

from bare_metal import kvm_probe, run_bare
from guest import hotpath_counters, need_machine_property

COUNT = 1000
DEVICES = ('pci-testdev,addr=4.0', 'edu,addr=5.0')


def need_kvm():
    state, why = kvm_probe()
    if state != 'works':
        raise unittest.SkipTest(f'KVM not used: {why}')


class BareIo(unittest.TestCase):

    def run_io(self, accel, machine='q35', at_end=None):
        state = 'on' if 'hints=on' in machine else 'off'
        return run_bare('io', name=f'bare-io-{accel}-{state}', accel=accel,
                        machine=machine, devices=DEVICES, at_end=at_end,
                        defines={'COUNT': COUNT})

    def check_values(self, results):
        self.assertEqual(results['identity'], 0x010000ed)
        self.assertEqual(results['mmio_count'], COUNT)
        self.assertEqual(results['port_count'], COUNT)
        self.assertEqual(results['edu'], self.edu_checksum())

    def edu_checksum(self):
        total = 0
        for number in range(COUNT, 0, -1):
            for value in (0x010000ed, ~number):
                rotated = (total << 5 | total >> 27) & 0xffffffff
                total = (rotated + value) & 0xffffffff
        return total

    def off_and_on(self, accel):
        """Equal results, and the reference table was really used."""
        need_machine_property('dispatch-hints')
        off = self.run_io(accel, at_end=self.expect_no_hits)
        on = self.run_io(accel, 'q35,dispatch-hints=on', self.expect_hits)
        self.assertEqual(off, on)

    def expect_hits(self, guest):
        counters = hotpath_counters(guest.vm, 'vcpu')
        self.assertGreater(counters.get('addr-hint-hits', 0), 0, counters)
        self.assertGreater(counters.get('addr-hint-fills', 0), 0, counters)

    def expect_no_hits(self, guest):
        counters = hotpath_counters(guest.vm, 'vcpu')
        self.assertEqual(counters.get('addr-hint-hits', 0), 0, counters)

    def test_values_tcg(self):
        self.check_values(self.run_io('tcg'))

    def test_values_kvm(self):
        need_kvm()
        results = self.run_io('kvm')
        self.check_values(results)
        self.assertEqual(results, self.run_io('tcg'))

    def test_dispatch_hints_tcg(self):
        self.off_and_on('tcg')

    def test_dispatch_hints_kvm(self):
        need_kvm()
        self.off_and_on('kvm')


if __name__ == '__main__':
    unittest.main()
