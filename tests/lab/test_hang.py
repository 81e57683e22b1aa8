# SPDX-License-Identifier: GPL-2.0-or-later
"""What hangs on purpose ends in a readable report, and soon."""
import unittest
from unittest import mock

import labtest
from labtest import GuestFailure


class Hang(labtest.LabTest):

    def report_of(self, wait):
        with self.assertRaises(GuestFailure) as caught:
            wait()
        return str(caught.exception)

    def test_guest(self):
        """The report tells where its vCPU spins and what came before."""
        with self.lab.guest('spins', 'result before this\npark ready\n'
                            'while :; do :; done') as guest:
            guest.wait_parked('ready')
            guest.resume()
            guest.limit(3)
            report = self.report_of(guest.finish)
        self.assertIn('no "DONE" within 3 s', report)
        self.assertIn("{'before': 'this'}", report)
        self.assertRegex(report, r'init: \d\S* is up')      # its console
        self.assertRegex(report, r'RIP=[0-9a-f]{16}')
        self.assertIn('thread CPU 0/KVM', report)

    @labtest.long_test('test_guest has such a report')
    def test_inner_qemu(self):
        """A QEMU that does not answer: the state of its threads is told."""
        with self.lab.guest('stopped', 'park for-ever') as guest:
            guest.wait_parked('for-ever')
            self.lab.run(f'kill -STOP {guest.pid}')
            guest.vm.limit_s = 3
            report = self.report_of(lambda: guest.vm.cmd('query-status'))
        self.assertIn('its QEMU does not answer', report)
        self.assertRegex(report, r'thread CPU 0/KVM, State:\s*T \(stopped\)')

    @labtest.long_test('test_guest has such a report')
    def test_inner_qemu_that_dies(self):
        """That is told from silence, whatever the test waits for."""
        with self.lab.guest('dies', 'park for-ever') as guest:
            guest.wait_parked('for-ever')
            guest.kill()
            guest.vm.limit_s = 3
            report = self.report_of(lambda: guest.vm.cmd('query-status'))
            self.assertIn('its QEMU has ended', report)
            report = self.report_of(guest.wait_done)
            self.assertIn('its QEMU has ended before "DONE"', report)

    @labtest.long_test('test_guest has such a report')
    def test_guest_that_resets(self):
        """Which ends its QEMU; the report tells that this was the reason."""
        with self.lab.guest('resets', 'park ready\nreboot -f') as guest:
            guest.wait_parked('ready')
            guest.resume()
            report = self.report_of(guest.wait_done)
        self.assertIn('its QEMU has ended before "DONE" (SHUTDOWN guest-reset,',
                      report.splitlines()[0])

    @labtest.long_test('test_guest has such a report')
    def test_inner_qemu_that_aborts(self):
        """The first line of the report tells the signal."""
        with self.lab.guest('aborts', 'park for-ever') as guest:
            guest.wait_parked('for-ever')
            self.lab.run(f'kill -ABRT {guest.pid}')
            report = self.report_of(guest.wait_done)
        self.assertIn('no SHUTDOWN event, potentially unexpected fatal signal '
                      '6', report.splitlines()[0])

    def check_once_more(self, crash):
        """What @crash does to the emulated host is counted and told."""
        notes, tries = [], []
        retries = self.lab.retries

        def crash_once(test):
            tries.append(test)
            if len(tries) == 1:
                crash()

        with mock.patch.object(labtest, 'note', notes.append):
            labtest.bounded(crash_once)(self)
        self.assertEqual(len(tries), 2)
        self.assertEqual(self.lab.retries, retries + 1)
        self.assertRegex(notes[0], 'the emulated host hung .*sysrq')
        self.assertEqual(self.lab.run('echo alive'), 'alive')

    def test_emulated_host(self):
        """It is started again once."""
        self.check_once_more(
            lambda: self.lab.run('echo c >/proc/sysrq-trigger'))

    @labtest.long_test('test_emulated_host is the same for the agent')
    def test_emulated_host_in_a_client(self):
        """A client of an inner QEMU may be the one that notices."""
        def crash():
            try:
                self.lab.run('echo c >/proc/sysrq-trigger')
            except labtest.LabHung:
                raise ConnectionError('disconnected') from None
        self.check_once_more(crash)


if __name__ == '__main__':
    unittest.main()
