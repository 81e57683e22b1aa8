# SPDX-License-Identifier: GPL-2.0-or-later
"""query-block-deadline-ms and posted-writes, from libvirt domains."""
import shutil
import tempfile
import unittest
from pathlib import Path

from libvirtd import LibvirtTest, VirshError
from guest import need_machine_property

MIB = 1024 * 1024

SCRIPT = '''
n=0
while :; do
    n=$((n + 1))
    result round $n
    sleep 0.1
done
'''


class SecondStack(LibvirtTest):

    def setUp(self):
        need_machine_property('query-block-deadline-ms')
        self.path = Path(tempfile.mkdtemp(prefix='hotss-', dir='/tmp'))
        self.addCleanup(shutil.rmtree, self.path, ignore_errors=True)
        self.disk = self.path / 'disk.raw'
        with open(self.disk, 'wb') as image:
            image.write(b'x' * MIB)
            image.truncate(8 * MIB)

    def make(self, edit=lambda text: text):
        return self.domain(
            'second-stack', SCRIPT, edit=lambda text: edit(
                text.replace('@DISK@', str(self.disk))
                    .replace('@LOG@', str(self.path / 'log'))))

    def counters(self, domain):
        groups = self.daemon.qmp(domain.name, 'query-stats', target='vm',
                                 providers=[{'provider': 'hotpath'}])
        return {stat['name']: stat['value'] for group in groups
                for stat in group['stats']}

    def test_life(self):
        """What libvirt asks of disks goes the new way, and is right."""
        domain = self.make()
        domain.start()
        domain.wait(lambda r: int(r.get('round', 0)) > 2, 'round 2')
        text = self.daemon.virsh('domblkinfo', domain.name, 'vda')
        found = dict(line.split(':') for line in text.split('\n')
                     if ':' in line)
        self.assertEqual(int(found['Capacity']), 8 * MIB, text)
        self.daemon.virsh('domstats', '--block', domain.name)
        self.assertTrue(self.daemon.qmp(domain.name, 'query-block'))
        counters = self.counters(domain)
        self.assertGreater(counters['async-call-query-block-parked']
                           + counters['async-call-query-block-inlined'], 0)
        self.assertEqual(counters['async-call-sizes-left-out'], 0)
        self.assertEqual(counters['async-call-query-block-timed-out'], 0)
        self.daemon.virsh('destroy', domain.name)
        self.assertEqual(domain.state(), 'shut off')

    def test_bad_value(self):
        domain = self.make(lambda text: text.replace(
            'deadline-ms=2000', 'deadline-ms=3600001'))
        with self.assertRaises(VirshError) as caught:
            domain.start()
        self.assertIn("'query-block-deadline-ms' is 3600001, but must be from "
                      '0 to 3600000', str(caught.exception))
        self.assertEqual(domain.state(), 'shut off')


class PostedDisks(LibvirtTest):
    """Posted writes of a floppy disk of libvirt's own, and of an SD card."""

    def make(self, edit=lambda text: text):
        need_machine_property('query-block-deadline-ms')
        path = Path(tempfile.mkdtemp(prefix='hotpd-', dir='/tmp'))
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        for name, size in (('floppy', 1440 * 1024), ('card', MIB)):
            with open(path / name, 'wb') as image:
                image.truncate(size)
        return self.domain(
            'posted-disks', SCRIPT, edit=lambda text: edit(
                text.replace('@FLOPPY@', str(path / 'floppy'))
                    .replace('@CARD@', str(path / 'card'))))

    def posted(self, domain):
        """Whether the property is on, by type of the domain's devices."""
        found = {}
        for folder in ('/machine/peripheral', '/machine/peripheral-anon'):
            for child in self.daemon.qmp(domain.name, 'qom-list', path=folder):
                kind = child['type'].partition('<')[2].rstrip('>')
                if kind in ('isa-fdc', 'sdhci-pci'):
                    found[kind] = self.daemon.qmp(
                        domain.name, 'qom-get', property='posted-writes',
                        path=f'{folder}/{child["name"]}')
        return found

    def test_on(self):
        domain = self.make()
        domain.start()
        domain.wait(lambda r: int(r.get('round', 0)) > 2, 'round 2')
        self.assertEqual(self.posted(domain),
                         {'isa-fdc': True, 'sdhci-pci': True})
        files = {Path(row['inserted']['image']['filename']).name
                 for row in self.daemon.qmp(domain.name, 'query-block')}
        self.assertEqual(files, {'floppy', 'card'})
        self.daemon.virsh('destroy', domain.name)
        self.assertEqual(domain.state(), 'shut off')

    def test_off(self):
        """What test_on sees is the property, not what is always so."""
        domain = self.make(lambda text: text.replace(
            'posted-writes=on', 'posted-writes=off'))
        domain.start()
        domain.wait(lambda r: int(r.get('round', 0)) > 0, 'round 1')
        self.assertEqual(self.posted(domain),
                         {'isa-fdc': False, 'sdhci-pci': False})


if __name__ == '__main__':
    unittest.main()
