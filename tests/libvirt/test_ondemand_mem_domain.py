# SPDX-License-Identifier: GPL-2.0-or-later
"""ondemand-mem-pci in a libvirt domain."""
import unittest

from libvirtd import LibvirtTest, VirshError
from cxl_guest import guest_program
from guest import is_base_build
from hotpath_paths import report_dir
from ondemand_guest import make_file

# Never ends by itself.
SCRIPT = '''
dev=$(grep -l 0x11ea /sys/bus/pci/devices/*/device)
dev=${dev%/device}
echo 1 >$dev/enable
result before $(cxlmem $dev/resource0 sum 4)
result fill $(cxlmem $dev/resource0 fill 11 2)
n=0
while :; do
    result again $(cxlmem $dev/resource0 sum 2)
    n=$((n + 1))
    result round $n
done
'''


class OndemandMem(LibvirtTest):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no ondemand-mem-pci')

    def make(self, edit=lambda text: text):
        data = make_file(report_dir('libvirt', 'ondemand-mem'))
        self.addCleanup(data.unlink)
        return self.domain(
            'ondemand-mem', SCRIPT,
            files={'bin/cxlmem': guest_program('cxlmem')},
            edit=lambda text: edit(text.replace('@DATA@', str(data))))

    def check_rounds(self, domain, more=3):
        start = int(domain.results().get('round', 0))
        domain.wait(lambda r: int(r.get('round', 0)) >= start + more,
                    f'round {start + more}')
        results = domain.results()
        self.assertEqual(results['again'], results['fill'])

    def region(self, domain):
        region, = self.daemon.qmp(domain.name, 'query-ondemand-map')
        return region

    def test_life(self):
        """Used, saved, restored and used again."""
        domain = self.make()
        domain.start()
        self.check_rounds(domain)
        self.assertGreater(self.region(domain)['mapped'], 0)
        resident = self.region(domain)['resident']
        said = self.daemon.virsh('qemu-monitor-command', domain.name, '--hmp',
                                 'info ondemand-map')
        self.assertIn(' mapped, hits ', said)
        image = domain.folder / 'saved'
        self.daemon.virsh('save', domain.name, image)
        self.addCleanup(image.unlink, missing_ok=True)
        self.assertEqual(domain.state(), 'shut off')
        self.daemon.virsh('restore', image)
        self.assertGreaterEqual(self.region(domain)['resident'], resident)
        self.check_rounds(domain)
        self.assertGreater(self.region(domain)['mapped'], 0)
        self.daemon.virsh('destroy', domain.name)
        self.assertEqual(domain.state(), 'shut off')

    def test_bad_value(self):
        """One error that names the property, the value and the limit."""
        domain = self.make(lambda text: text.replace('granule=64k',
                                                     'granule=65000'))
        with self.assertRaises(VirshError) as caught:
            domain.start()
        self.assertIn("'granule' of ondemand-policy is 65000, but must be a "
                      'power of two', str(caught.exception))
        self.assertEqual(domain.state(), 'shut off')


if __name__ == '__main__':
    unittest.main()
