# SPDX-License-Identifier: GPL-2.0-or-later
"""On-demand mapping under a real KVM whose memory slots run out."""
import unittest

import labtest
from cxl_guest import guest_program
from ondemand_guest import MIB, SCRIPT, make_file
from ondemand_vm import shim
from hotpath_paths import report_dir

SLOTS = 150
QEMU = '/bin/qemu-system-x86_64'

CONTENTS = SCRIPT + '''
report first sum 2
sleep 1
report again sum 2
report fill fill 7 2
report filled sum 2
park counts
'''


class Slots(labtest.LabTest):

    def few_slots(self):
        """Let the inner QEMU find an older KVM."""
        self.lab.put('/tmp/kvm_slots.so', shim('kvm_slots').read_bytes())
        self.lab.run(f'mv {QEMU} {QEMU}.real\n'
                     f'cat >{QEMU} <<"EOF"\n#!/bin/sh\n'
                     f'export KVM_SLOTS={SLOTS} LD_PRELOAD=/tmp/kvm_slots.so\n'
                     f'exec {QEMU}.real "$@"\nEOF\nchmod +x {QEMU}')
        self.addCleanup(self.lab.run, f'mv {QEMU}.real {QEMU}')

    def test_slots(self):
        """What finds no slot goes on to trap."""
        path = make_file(report_dir('lab', 'ondemand'), 2 * MIB)
        self.lab.put('/tmp/window', path.read_bytes())
        path.unlink()
        self.few_slots()
        with self.lab.guest(
                'slots', CONTENTS, devices=[
                    'ondemand-mem-pci,id=mem0,addr=10.0,policy=pol,'
                    'file=/tmp/window'], args=[
                    '-object', 'ondemand-policy,id=pol,threshold=4,'
                    'granule=4k,chunks=256'],
                files={'bin/cxlmem': guest_program('cxlmem')}) as guest:
            guest.wait_parked('counts')
            info, = guest.vm.cmd('query-ondemand-map')
            guest.resume()
            results = guest.finish()
        reasons = {r.get('refusal') for r in info['ranges']
                   if r['state'] == 'refused'}
        self.assertEqual(reasons, {'slots'})
        self.assertGreater(info['maps'], 10)
        self.assertEqual(results['again'], results['first'])
        self.assertEqual(results['filled'], results['fill'])


if __name__ == '__main__':
    unittest.main()
