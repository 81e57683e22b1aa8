# SPDX-License-Identifier: GPL-2.0-or-later
"""addr-hint-pci in bare-metal guests that use the reference driver."""
import unittest

from bare_metal import kvm_probe, run_bare
from guest import hotpath_counters, is_base_build

COUNT = 1000
DEVICES = ('pci-testdev,addr=4.0', 'edu,addr=5.0',
           'addr-hint-pci,addr=6.0,hints=100,doorbells=8',
           'virtio-rng-pci,disable-legacy=on,addr=7.0',
           'e1000,addr=8.0,romfile=')

# status values of docs/specs/addr-hint.rst
EXPECTED = {
    'open': 0, 'hints': 100, 'doorbells': 8,
    'status': 0, 'identity': 0x010000ed, 'wrong': 0, 'wrong_sizes': 0,
    'beside': 0, 'forged': 0,
    'stale': 0, 'stale_status': 11, 'live': 0x010000ed, 'live_status': 0,
    'put': 0, 'after_put': 0,
    'nic': 0, 'wrong_coalesced': 0, 'hpet': 0, 'wrong_lockless': 0,
    'ram': 4, 'nothing': 3, 'own': 7, 'empty': 2, 'crossing': 2,
    'bad_put': 10,
    'posted': 0, 'rung': ~0x1234 & 0xffffffff,
    'shared': 0, 'served': 20, 'end': 0,
}
WAYS = ('write', 'write_window', 'doorbell', 'doorbell_shared', 'eventfd',
        'read', 'read_window')


def counters(vm):
    return {**hotpath_counters(vm, 'vm'), **hotpath_counters(vm, 'vcpu')}


def mmio_exits(vm):
    """Return how often KVM has left the kernel for MMIO; skip if unknown."""
    groups = vm.cmd('query-stats', target='vcpu',
                    providers=[{'provider': 'kvm'}])
    for stat in groups[0]['stats']:
        if stat['name'] == 'mmio_exits':
            return stat['value']
    raise unittest.SkipTest('this KVM does not count mmio_exits')


class BareHint(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no addr-hint-pci')

    def need_kvm(self):
        state, why = kvm_probe()
        if state != 'works':
            self.skipTest(f'KVM not used: {why}')

    def use(self, accel, machine='q35'):
        results = run_bare('hint', name=f'bare-hint-{accel}', accel=accel,
                           machine=machine, devices=DEVICES,
                           defines={'COUNT': COUNT}, at_end=self.check_counts)
        self.assertEqual(results.pop('hpet_id') >> 16, 0x8086)
        self.assertEqual(results, EXPECTED)

    def check_counts(self, guest):
        count = counters(guest.vm)
        self.assertGreaterEqual(count['addr-hint-window-hits'], 7 * COUNT)
        self.assertEqual(count['addr-hint-window-stale'], 1)
        self.assertEqual(count['addr-hint-window-refused'], 3)
        self.assertEqual(count['addr-hint-registrations'], 6)
        self.assertEqual(count['addr-hint-registered'], 3)
        self.assertEqual(count['addr-hint-refusals'], 5)
        # the one at edu; the virtio queue's went past QEMU
        self.assertEqual(count['addr-hint-doorbell-writes'], 1)
        self.assertEqual(count['addr-hint-doorbells-shared'], 1)
        # with the guest's vCPU alone, no access was anybody else's but this
        self.assertEqual(count['addr-hint-other-hits'], 1)

    def test_driver_tcg(self):
        self.use('tcg')

    def test_driver_kvm(self):
        """The window at KVM's exits, the doorbells' ioeventfds in a kernel."""
        self.need_kvm()
        self.use('kvm')

    def test_coalesced_kvm(self):
        """The writes that hint.c makes to e1000 are gathered, or its check of
        their order would prove nothing."""
        self.need_kvm()
        exits = []
        run_bare('hint', name='bare-hint-coalesced', accel='kvm',
                 devices=DEVICES, defines={'COUNT': COUNT},
                 at_end=lambda guest: exits.append(mmio_exits(guest.vm)))
        # a round has 15 accesses: 4 to edu, 5 to e1000, 6 to the clock
        self.assertEqual(exits[0] // COUNT, 15 - 2, exits)

    def test_driver_with_dispatch_hints(self):
        """Both halves of the mechanism together."""
        for accel in ('tcg', 'kvm'):
            with self.subTest(accel=accel):
                if accel == 'kvm':
                    self.need_kvm()
                self.use(accel, 'q35,dispatch-hints=on')

    def test_exits(self):
        """Under KVM no ring of a doorbell leaves the kernel."""
        self.need_kvm()
        found = {}

        def at_end(guest):
            found.update(counters(guest.vm), exits=mmio_exits(guest.vm))

        results = run_bare('hintways', accel='kvm', devices=DEVICES,
                           defines={'COUNT': COUNT, 'ROUNDS': 2},
                           at_end=at_end)
        self.assertEqual(results['status'], 0)
        # plain and by the window, written and read, in two rounds; what is
        # above it are the driver's requests
        self.assertEqual(found['exits'] // COUNT, 2 * 4, found)
        self.assertEqual(found['addr-hint-window-hits'], 2 * 2 * COUNT)
        self.assertTrue(0 < found['addr-hint-doorbell-writes'] <= 2 * COUNT)

    def test_ways_tcg(self):
        results = run_bare('hintways', name='bare-hintways-tcg',
                           devices=DEVICES, accel='tcg',
                           defines={'COUNT': COUNT, 'ROUNDS': 2})
        self.assertEqual(results['status'], 0)
        self.assertEqual({results[way] for way in WAYS}, {1})


if __name__ == '__main__':
    unittest.main()
