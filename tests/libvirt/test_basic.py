# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain without any mechanism: the ground the other tests stand on."""
import unittest

from libvirtd import LibvirtTest, VirshError

TICKS = '''
n=0
while :; do
    result tick $n
    n=$((n + 1))
    usleep 300000
done
'''


class Basic(LibvirtTest):

    def wait_off(self, domain):
        domain.wait(lambda _: domain.state() == 'shut off', 'shut off')

    def test_life(self):
        """Define, start, results, power off, undefine."""
        domain = self.domain('basic', 'result cpus $(nproc)')
        self.assertEqual(domain.state(), 'shut off')
        domain.start()
        results = domain.wait(lambda r: 'DONE' in r, 'DONE')
        self.assertEqual(results, {'cpus': '1', 'DONE': '0'})
        self.wait_off(domain)
        self.daemon.virsh('undefine', domain.name)
        with self.assertRaisesRegex(VirshError, 'failed to get domain'):
            domain.state()

    def test_save_and_restore(self):
        """A saved guest goes on where it was."""
        domain = self.domain('basic', TICKS)
        domain.start()
        domain.wait(lambda r: 'tick' in r, 'first tick')
        image = domain.folder / 'saved'
        self.addCleanup(image.unlink, missing_ok=True)
        self.daemon.virsh('save', domain.name, image)
        self.assertEqual(domain.state(), 'shut off')
        before = int(domain.results()['tick'])
        self.daemon.virsh('restore', image)
        results = domain.wait(lambda r: int(r['tick']) >= before + 5,
                              'five more ticks')
        self.assertNotIn('DONE', results)
        ticks = [int(line.split()[-1]) for line
                 in domain.serial.read_text().splitlines()]
        self.assertEqual(ticks, list(range(len(ticks))))

    def test_bad_xml(self):
        """The schema check is on: an element that does not exist fails."""
        with self.assertRaisesRegex(VirshError, 'XML document failed to valid'):
            self.domain('basic', 'true', edit=lambda text: text.replace(
                '<vcpu>', '<nonsense/><vcpu>'))


if __name__ == '__main__':
    unittest.main()
