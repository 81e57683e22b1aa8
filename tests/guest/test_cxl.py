# SPDX-License-Identifier: GPL-2.0-or-later
"""CXL memory mapped on demand, used by a Linux guest through a dax device."""
import unittest

from bare_metal import BareGuest, build_image, kvm_probe, run_bare
from cxl_guest import CXL_SCRIPT, SIZE, bare_options, cxl_options
from guest import Guest, GuestFailure, hotpath_counters, is_base_build

THRESHOLD = 20000

# Everything that is reported must be the same mapped and trapped.  The pattern
# is written half before and half after the switch.
CONTENTS = CXL_SCRIPT + '''
report before fill 1 1
park half
report fill fill 7 16
report again sum 16
report first sum 1
report free_code run 30000
park counts
'''

THREADS = CXL_SCRIPT + '''
report threads threads 4 30
park counts
'''

# The decoders are torn down while threads use the memory.
TEAR_DOWN = CXL_SCRIPT + '''
report fill fill 3 4
park mapped
cxlmem $dax threads 2 1000000 >/tmp/threads 2>&1 &
worker=$!
sleep 1
echo $region >/sys/bus/cxl/drivers/cxl_region/unbind
wait $worker
result worker $?
echo 0 >/sys/bus/cxl/devices/$region/commit
result committed $(cat /sys/bus/cxl/devices/$region/commit)
park gone
'''


def need_policy():
    if is_base_build():
        raise unittest.SkipTest('the unpatched base has no ondemand-policy')


class CxlMemory(unittest.TestCase):

    def ranges(self, guest):
        info, = guest.vm.cmd('query-ondemand-map')
        return info['ranges']

    def run_contents(self, name, policy):
        with Guest(name, CONTENTS, timeout=300,
                   **cxl_options(policy)) as guest:
            guest.wait_parked('half')
            if policy:
                state, = [r['state'] for r in self.ranges(guest)]
                self.assertEqual(state, 'mapped' if policy == 'threshold=0'
                                 else 'cold')
            guest.resume()
            guest.wait_parked('counts')
            counts = guest.counters('vm')
            guest.resume()
            results = guest.finish().results
        code = results.pop('free_code').split()     # ns, and if it was right
        self.assertEqual(code[1], 'right')
        return results, counts

    def test_contents(self):
        need_policy()
        # the code asks for a mapping, which max-mapped does not allow
        cold, counts = self.run_contents(
            'cxl-cold', 'threshold=1000000000,max-mapped=4k')
        self.assertEqual(counts['ondemand-map-maps'], 0)
        self.assertGreater(counts['ondemand-map-forced-fetch'], 0)
        self.assertGreater(counts['ondemand-map-traps'], 0)
        self.assertEqual(cold['fill'], cold['again'])
        for threshold in 0, THRESHOLD:
            results, counts = self.run_contents(f'cxl-{threshold}',
                                                f'threshold={threshold}')
            self.assertEqual(results, cold)
            self.assertEqual(counts['ondemand-map-maps'], 1)
            self.assertEqual(counts['ondemand-map-mapped-bytes'], SIZE)
            if threshold:
                self.assertGreater(counts['ondemand-map-traps'], THRESHOLD)

    def test_without_policy(self):
        results, counts = self.run_contents('cxl-none', None)
        self.assertEqual(results['fill'], results['again'])
        self.assertFalse(counts)

    def check_threads(self, name, policy, smp):
        with Guest(name, THREADS, smp=smp, timeout=300,
                   **cxl_options(policy)) as guest:
            guest.wait_parked('counts')
            counts = guest.counters('vm')
            guest.resume()
            result = guest.finish()
        self.assertEqual(result['threads'],
                         'errors 0 count 120 of 120, 360 of 360')
        return counts

    def test_threads_over_the_switch(self):
        """Four writers, and atomics, while the memory gets mapped."""
        need_policy()
        counts = self.check_threads('cxl-threads', f'threshold={THRESHOLD}', 2)
        self.assertEqual(counts['ondemand-map-maps'], 1)

    def test_torn_down_while_hot(self):
        need_policy()
        with Guest('cxl-tear-down', TEAR_DOWN, smp=2, timeout=300,
                   **cxl_options('threshold=64')) as guest:
            guest.wait_parked('mapped')
            state, = [r['state'] for r in self.ranges(guest)]
            self.assertEqual(state, 'mapped')
            guest.resume()
            guest.wait_parked('gone')
            self.assertEqual(self.ranges(guest), [])
            counts = hotpath_counters(guest.vm, 'vm')
            self.assertEqual(counts['ondemand-map-mapped-bytes'], 0)
            self.assertGreaterEqual(counts['ondemand-map-unmaps'], 1)
            guest.resume()
            result = guest.finish()
        self.assertEqual(result['committed'], '0')


class BareCxl(unittest.TestCase):
    """Code that lies in CXL memory (bare/cxl.S)."""

    def check(self, accel, policy):
        counts = {}
        results = run_bare('cxl', name=f'bare-cxl-{accel}', accel=accel,
                           at_end=lambda g: counts.update(
                               hotpath_counters(g.vm, 'vm')),
                           **bare_options(policy))
        self.assertEqual(results['sum'], 0x12345678 * 5000 & 0xffffffff)
        self.assertEqual(results['ran'], 3000)
        self.assertEqual(results['changed'], 5000)
        return counts

    def need_kvm(self):
        state, why = kvm_probe()
        if state != 'works':
            raise unittest.SkipTest(f'KVM not used: {why}')

    def test_tcg(self):
        self.check('tcg', None)

    def test_tcg_mapped(self):
        need_policy()
        counts = self.check('tcg', 'threshold=100')
        self.assertEqual(counts['ondemand-map-maps'], 1)
        self.assertGreater(counts['ondemand-map-traps'], 100)

    def test_kvm_mapped(self):
        need_policy()
        self.need_kvm()
        for threshold in 0, 100:
            counts = self.check('kvm', f'threshold={threshold}')
            self.assertEqual(counts['ondemand-map-maps'], 1)

    def test_forced(self):
        """Code is mapped long before the threshold."""
        need_policy()
        counts = self.check('tcg', 'threshold=1000000000')
        self.assertEqual(counts['ondemand-map-forced-fetch'], 1)
        self.assertEqual(counts['ondemand-map-maps'], 1)
        self.need_kvm()
        counts = self.check('kvm', 'threshold=1000000000')
        self.assertEqual(counts['ondemand-map-forced-fetch'], 1)
        self.assertEqual(counts['ondemand-map-maps'], 1)

    def test_kvm_trapped(self):
        """Without a mapping KVM cannot run it: why the mapping matters."""
        self.need_kvm()
        self.check_trapped(None)

    def test_kvm_refused(self):
        """The same where a limit does not allow a mapping."""
        need_policy()
        self.need_kvm()
        self.check_trapped('threshold=0,max-mapped=4k')

    def check_trapped(self, policy):
        options = bare_options(policy)
        image = build_image('cxl', options.pop('defines'))
        with BareGuest('bare-cxl-trapped', image, accel='kvm', timeout=10,
                       **options) as guest:
            guest.wait_end('sum')
            guest.timeout = 3
            with self.assertRaises(GuestFailure):
                guest.wait_end('ran')
            self.assertEqual(guest.vm.cmd('query-status')['status'],
                             'internal-error')


if __name__ == '__main__':
    unittest.main()
