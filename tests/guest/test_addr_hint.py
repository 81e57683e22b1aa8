# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest that asks addr-hint-pci for hints, and uses them."""
import unittest

from guest import Guest, is_base_build

# The registers are in docs/specs/addr-hint.rst; 'edu' has its identity at 0
# and at 4 a register that reads as the complement of what was written.
SCRIPT = '''
find_device() {
    path=$(grep -l "$1" /sys/bus/pci/devices/*/device)
    path=${path%/device}
    echo 1 >"$path/enable"
}
bar() {
    sed -n "$1p" "$path/resource" | cut -d' ' -f1
}
find_device 0x11e8
edu=$(bar 1)
find_device 0x4148
regs=$(bar 1)
bells=$(bar 2)
window=$(bar 3)

# register ADDRESS LENGTH FLAGS DATA
register() {
    devmem $((regs + 0x10)) 32 $(($1 & 0xffffffff))
    devmem $((regs + 0x14)) 32 $(($1 >> 32))
    devmem $((regs + 0x18)) 32 $2
    devmem $((regs + 0x1c)) 32 $3
    devmem $((regs + 0x20)) 32 $4
    devmem $((regs + 0x24)) 32 0
    devmem $((regs + 0x2c)) 32 1
    status=$(($(devmem $((regs + 0x30)) 32)))
    page=$((window + $(devmem $((regs + 0x28)) 32) * 4096))
}

result magic $(devmem $regs 32)
register 0x1000 4 0 0
result ram $status
register $edu 4096 0 0
result status $status
hinted=$page
result identity $(devmem $hinted 32)
n=1
facts=
while [ $n -le 50 ]; do
    devmem $((hinted + 4)) 32 $n
    facts="$facts $(($(devmem $((edu + 4)) 32) + n))"
    devmem $((edu + 4)) 32 $((n * 3))
    facts="$facts $(($(devmem $((hinted + 4)) 32) + n * 3))"
    n=$((n + 1))
done
result facts $(echo $facts | tr ' ' '\\n' | sort | uniq -c)
register $((edu + 4)) 4 1 4660
result posted $status
devmem $((bells + 4 * $(devmem $((regs + 0x34)) 32))) 32 1
n=0
while [ $n -lt 100 ] && [ $(devmem $((edu + 4)) 32) != 0xFFFFEDCB ]; do
    n=$((n + 1))
done
result rung $(devmem $((edu + 4)) 32)
result forged $(devmem $((window + 4096 * 9)) 32)
park counts
'''


class LinuxGuest(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no addr-hint-pci')

    def test_hints(self):
        """Register, refuse, read and write by hint, ring a doorbell."""
        with Guest('addr-hint-pci', SCRIPT,
                   devices=('edu', 'addr-hint-pci')) as guest:
            guest.wait_parked('counts')
            vcpu, vm = guest.counters('vcpu'), guest.counters('vm')
            guest.resume()
            result = guest.finish()
        self.assertEqual(result['magic'], '0x544E4948')
        self.assertEqual(result['ram'], '4')
        self.assertEqual(result['status'], '0')
        self.assertEqual(result['identity'], '0x010000ED')
        self.assertEqual(result['facts'].split(), ['100', str(0xffffffff)])
        self.assertEqual(result['posted'], '0')
        self.assertEqual(result['rung'], '0xFFFFEDCB')
        self.assertEqual(result['forged'], '0x00000000')
        self.assertGreaterEqual(vcpu['addr-hint-window-hits'], 101)
        self.assertGreaterEqual(vcpu['addr-hint-window-refused'], 1)
        self.assertEqual(vm['addr-hint-registered'], 2)
        self.assertEqual(vm['addr-hint-refusals'], 1)
        self.assertEqual(vm['addr-hint-doorbell-writes'], 1)


if __name__ == '__main__':
    unittest.main()
