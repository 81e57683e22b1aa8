# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine property dispatch-hints, from a libvirt domain."""
import unittest

from libvirtd import LibvirtTest, VirshError
from guest import need_machine_property

# Configuration space is read through ports; never ends by itself.
SCRIPT = '''
n=0
while :; do
    cat /sys/bus/pci/devices/*/config | md5sum >/tmp/sum
    n=$((n + 1))
    result round $n
done
'''


def round_of(results):
    return int(results.get('round', 0))


class DispatchHints(LibvirtTest):

    def setUp(self):
        need_machine_property('dispatch-hints')

    def check_on(self, domain):
        self.assertIs(self.daemon.qmp(domain.name, 'qom-get', path='/machine',
                                      property='dispatch-hints'), True)

    def hits(self, domain):
        groups = self.daemon.qmp(domain.name, 'query-stats', target='vcpu',
                                 providers=[{'provider': 'hotpath'}])
        return sum(stat['value'] for group in groups
                   for stat in group['stats']
                   if stat['name'] == 'addr-hint-hits')

    def wait_rounds(self, domain, more=10):
        start = round_of(domain.results())
        domain.wait(lambda r: round_of(r) >= start + more,
                    f'round {start + more}')

    def test_life(self):
        """Property, statistics, save and restore, destroy."""
        domain = self.domain('dispatch-hints', SCRIPT)
        domain.start()
        self.wait_rounds(domain)
        self.check_on(domain)
        self.assertGreater(self.hits(domain), 0)
        image = domain.folder / 'saved'
        self.daemon.virsh('save', domain.name, image)
        self.addCleanup(image.unlink, missing_ok=True)
        self.assertEqual(domain.state(), 'shut off')
        self.daemon.virsh('restore', image)
        self.wait_rounds(domain)
        self.check_on(domain)
        self.assertGreater(self.hits(domain), 0)
        self.daemon.virsh('destroy', domain.name)
        self.assertEqual(domain.state(), 'shut off')

    def test_unknown_value(self):
        """One error that names the property and what it takes."""
        domain = self.domain('dispatch-hints', SCRIPT,
                             edit=lambda text: text.replace(
                                 'dispatch-hints=on', 'dispatch-hints=maybe'))
        with self.assertRaises(VirshError) as caught:
            domain.start()
        said = [line for line in str(caught.exception).splitlines()
                if "'dispatch-hints'" in line and 'domain' not in line]
        self.assertEqual(len(said), 1, caught.exception)
        self.assertRegex(said[0], r"dispatch-hints.*on.*off")
        self.assertEqual(domain.state(), 'shut off')


if __name__ == '__main__':
    unittest.main()
