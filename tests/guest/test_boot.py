# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest boots, and the harness reports what it says."""
import unittest

from guest import GuestFailure, guest_files, run_guest

FACTS = '''
result cpus $(nproc)
result release $(uname -r)
result online $(cat /sys/devices/system/cpu/online)
'''


class Boot(unittest.TestCase):

    def boot(self, smp, online):
        result = run_guest(f'boot-{smp}', FACTS, smp=smp)
        self.assertEqual(result['cpus'], str(smp))
        self.assertEqual(result['online'], online)
        self.assertEqual(result['release'], guest_files()[0].version)

    def test_one_vcpu(self):
        self.boot(1, '0')

    def test_two_vcpus(self):
        self.boot(2, '0-1')


class Harness(unittest.TestCase):
    """The harness itself tells failures from success."""

    def test_failing_script(self):
        with self.assertRaisesRegex(GuestFailure, 'script status 3'):
            run_guest('harness-fail', 'result x 1\nexit 3')

    def test_time_limit(self):
        with self.assertRaisesRegex(GuestFailure, r'no "DONE" within 12 s'):
            run_guest('harness-limit', 'sleep 1000', timeout=12)

    def test_panic(self):
        with self.assertRaisesRegex(GuestFailure, 'QEMU ended before'):
            run_guest('harness-panic', 'echo c >/proc/sysrq-trigger')

    def test_missing_result(self):
        result = run_guest('harness-missing', 'result x 1')
        with self.assertRaisesRegex(GuestFailure, 'no result "y"'):
            result['y']


if __name__ == '__main__':
    unittest.main()
