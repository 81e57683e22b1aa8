# SPDX-License-Identifier: GPL-2.0-or-later
"""CXL memory that is mapped on demand, in a libvirt domain."""
import unittest

from libvirtd import LibvirtTest, VirshError
from cxl_guest import CXL_SCRIPT, SIZE, guest_files
from guest import is_base_build

# Never ends by itself.
SCRIPT = CXL_SCRIPT + '''
report fill fill 11 16
report again sum 16
while :; do sleep 1; done
'''


class OndemandCxl(LibvirtTest):

    def setUp(self):
        if is_base_build():
            raise unittest.SkipTest('the unpatched base has no '
                                    'ondemand-policy')

    def make(self, edit=lambda text: text):
        return self.domain('ondemand-cxl', SCRIPT, edit=edit,
                           files=guest_files())

    def test_life(self):
        domain = self.make()
        domain.start()
        results = domain.wait(lambda r: 'again' in r or 'DONE' in r, 'again')
        self.assertIn('again', results)
        self.assertEqual(results['fill'], results['again'])
        region, = self.daemon.qmp(domain.name, 'query-ondemand-map')
        self.assertEqual(region['mapped'], SIZE)
        self.assertGreater(region['traps'], 64)
        said = self.daemon.virsh('qemu-monitor-command', domain.name, '--hmp',
                                 'info ondemand-map')
        self.assertIn(' mapped, hits ', said)
        # neither the memory nor the decoders would be saved
        with self.assertRaises(VirshError) as caught:
            self.daemon.virsh('save', domain.name, domain.folder / 'saved')
        self.assertIn('ondemand-policy', str(caught.exception))
        self.assertEqual(domain.state(), 'running')

    def test_bad_value(self):
        domain = self.make(lambda text: text.replace('threshold=64',
                                                     'threshold=often'))
        with self.assertRaises(VirshError) as caught:
            domain.start()
        self.assertIn("'threshold' of ondemand-policy is 'often', but must be",
                      str(caught.exception))
        self.assertEqual(domain.state(), 'shut off')


if __name__ == '__main__':
    unittest.main()
