# SPDX-License-Identifier: GPL-2.0-or-later
"""The device addr-hint-pci, from a libvirt domain."""
import unittest

from libvirtd import LibvirtTest, VirshError
from guest import is_base_build

# Reads a register of the SATA controller at its address and by a hint; never
# ends by itself.
SCRIPT = '''
find_device() {
    path=$(grep -l "$1" /sys/bus/pci/devices/*/device)
    path=${path%/device}
    echo 1 >"$path/enable"
}
bar() {
    sed -n "$1p" "$path/resource" | cut -d' ' -f1
}
find_device 0x2922
sata=$(bar 6)
find_device 0x4148
regs=$(bar 1)
window=$(bar 3)
devmem $((regs + 0x10)) 32 $((sata))
devmem $((regs + 0x18)) 32 16
devmem $((regs + 0x2c)) 32 1
result status $(($(devmem $((regs + 0x30)) 32)))
hinted=$((window + $(devmem $((regs + 0x28)) 32) * 4096 + sata % 4096))
n=0
wrong=0
while :; do
    value=$(devmem $((hinted)) 32)
    [ "$value" = "$(devmem $((sata)) 32)" ] || wrong=$((wrong + 1))
    n=$((n + 1))
    result value $value
    result wrong $wrong
    result round $n
done
'''


def round_of(results):
    return int(results.get('round', 0))


class AddrHint(LibvirtTest):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no addr-hint-pci')

    def hits(self, domain):
        groups = self.daemon.qmp(domain.name, 'query-stats', target='vcpu',
                                 providers=[{'provider': 'hotpath'}])
        return sum(stat['value'] for group in groups
                   for stat in group['stats']
                   if stat['name'] == 'addr-hint-window-hits')

    def check_rounds(self, domain, more=10):
        """The guest goes on, and by the hint it reads what is there."""
        start, hits = round_of(domain.results()), self.hits(domain)
        domain.wait(lambda r: round_of(r) >= start + more,
                    f'round {start + more}')
        results = domain.results()
        self.assertEqual(results['status'], '0')
        self.assertEqual(results['wrong'], '0')
        self.assertNotEqual(int(results['value'], 16), 0)
        self.assertGreaterEqual(self.hits(domain) - hits, more - 1)

    def test_life(self):
        """A hint is used, saved, restored and used again."""
        domain = self.domain('addr-hint', SCRIPT)
        domain.start()
        self.check_rounds(domain)
        image = domain.folder / 'saved'
        self.daemon.virsh('save', domain.name, image)
        self.addCleanup(image.unlink, missing_ok=True)
        self.assertEqual(domain.state(), 'shut off')
        self.daemon.virsh('restore', image)
        self.check_rounds(domain)
        self.daemon.virsh('destroy', domain.name)
        self.assertEqual(domain.state(), 'shut off')

    def test_bad_value(self):
        """One error that names the property, the value and the limit."""
        domain = self.domain('addr-hint', SCRIPT,
                             edit=lambda text: text.replace(
                                 'hints=64', 'hints=20000'))
        with self.assertRaises(VirshError) as caught:
            domain.start()
        self.assertRegex(str(caught.exception),
                         "property 'hints' is 20000, it must be 1 to 16384")
        self.assertEqual(domain.state(), 'shut off')


if __name__ == '__main__':
    unittest.main()
