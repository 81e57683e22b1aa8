# SPDX-License-Identifier: GPL-2.0-or-later
"""An irq-affinity object, from a libvirt domain.

Without an assigned device, which needs hardware: these are the subject of
tests/lab/test_irq_affinity.py.
"""
import unittest

from libvirtd import LibvirtTest

SCRIPT = 'n=0; while :; do n=$((n + 1)); result round $n; sleep 1; done'


class IrqAffinity(LibvirtTest):

    def test_life(self):
        domain = self.domain('irq-affinity', SCRIPT)
        domain.start()
        domain.wait(lambda r: 'round' in r, 'a first round')
        info, = self.daemon.qmp(domain.name, 'query-irq-affinity')
        self.assertEqual(info['id'], 'follow')
        self.assertEqual(info['policy'], 'optimistic')
        # nothing is attached, so nothing is watched and no timer runs
        self.assertEqual((info['vcpus'], info['vectors'], info['wake-ups']),
                         ([], [], 0))
        self.daemon.virsh('destroy', domain.name)
        self.assertEqual(domain.state(), 'shut off')


if __name__ == '__main__':
    unittest.main()
