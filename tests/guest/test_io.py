# SPDX-License-Identifier: GPL-2.0-or-later
"""Port and MMIO heavy guests: same results with each mechanism off and on."""
import unittest

from guest import OffOnTest, run_guest

# Configuration space and the clock are reached through ports, the 'edu'
# device through MMIO.  Every value that is reported is the same in each run.
IO_SCRIPT = '''
edu=$(grep -l 0x11e8 /sys/bus/pci/devices/*/device)
edu=${edu%/device}
bar=$(head -n 1 "$edu/resource" | cut -d' ' -f1)
echo 1 >"$edu/enable"

n=0
sums=
while [ $n -lt 40 ]; do
    sums="$sums $(cat /sys/bus/pci/devices/*/config | md5sum)"
    n=$((n + 1))
done
result config $(echo $sums | md5sum)
result config_kinds $(echo "$sums" | tr ' ' '\\n' | grep -c '^[0-9a-f]\\{32\\}$')

n=0
while [ $n -lt 50 ]; do
    cat /sys/class/rtc/rtc0/time >/tmp/now || exit 1
    n=$((n + 1))
done
result clock $(wc -c </tmp/now)

n=1
facts=
while [ $n -le 60 ]; do
    devmem $(($bar + 4)) 32 $n
    facts="$facts $(devmem $(($bar + 4)) 32)"
    devmem $(($bar + 8)) 32 $((n % 13))
    while [ $(($(devmem $(($bar + 32)) 32) & 1)) -ne 0 ]; do :; done
    facts="$facts $(devmem $(($bar + 8)) 32)"
    n=$((n + 1))
done
result identity $(devmem $bar 32)
result last $facts
result edu $(echo $facts | md5sum)
'''


class PortAndMmio(unittest.TestCase):

    def test_values(self):
        result = run_guest('io', IO_SCRIPT, devices=('edu',))
        self.assertEqual(result['identity'], '0x010000ED')
        self.assertEqual(result['config_kinds'], '40')
        facts = result['last'].split()
        self.assertEqual(int(facts[0], 16), 0xfffffffe)     # ~1
        self.assertEqual(int(facts[9], 16), 120)            # 5!
        self.assertEqual(int(facts[23], 16), 479001600)     # 12!


class DispatchHints(OffOnTest, unittest.TestCase):
    """Same values with the reference table; it must have been used."""
    name = 'io-hints'
    script = IO_SCRIPT + 'park counts\n'
    machine_on = 'q35,dispatch-hints=on'
    needs_property = 'dispatch-hints'
    options = {'devices': ('edu',)}

    def during(self, guest, state):
        hits = guest.counters('vcpu').get('addr-hint-hits', 0)
        if state == 'on':
            self.assertGreater(hits, 0)
        else:
            self.assertEqual(hits, 0)


class DispatchHintsTwoCpus(DispatchHints):
    name = 'io-hints-2'
    options = {'devices': ('edu',), 'smp': 2}


if __name__ == '__main__':
    unittest.main()
