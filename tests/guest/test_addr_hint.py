# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest that asks addr-hint-pci for hints, and uses them."""
import os
import subprocess
import tempfile
import unittest

from guest import Guest, is_base_build
from hotpath_paths import GUEST_DIR, ROOT, SetupError

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

# the same by the example program; the last two are errors
POKE_SCRIPT = '''
edu=$(grep -l 0x11e8 /sys/bus/pci/devices/*/device)
edu=${edu%/device}
edu=${edu##*/}
poke() {
    /hint-poke "$@" 2>&1
}
result identity $(poke $edu 0 0)
poke $edu 0 4 0x1234
result written $(poke $edu 0 4)
poke -p $edu 0 4 0xabcd
result posted $(poke $edu 0 4)
# on the second vCPU
result timed $(taskset 2 /hint-poke -n 1000 $edu 0 0)
n=0
while [ $n -lt 40 ]; do
    poke $edu 0 4 $n
    [ $(($(poke $edu 0 4) + n)) = 4294967295 ] || result wrong $n
    n=$((n + 1))
done
result rounds $n
result beyond $(poke $edu 0 0x100000)
result nothing $(poke $edu 1 0)
result usage $(poke -p $edu 0 0)
park counts
'''


def hits_of_vcpus(vm):
    """Return the hits in windows of each vCPU, by its number."""
    numbers = {cpu['qom-path']: cpu['cpu-index']
               for cpu in vm.cmd('query-cpus-fast')}
    return {numbers[group['qom-path']]: stat['value']
            for group in vm.cmd('query-stats', target='vcpu',
                                providers=[{'provider': 'hotpath'}])
            for stat in group['stats']
            if stat['name'] == 'addr-hint-window-hits'}


def poke_program():
    """Compile the example for guests; return the program."""
    source = ROOT / 'src' / 'contrib' / 'addr-hint' / 'hint-poke.c'
    GUEST_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=GUEST_DIR) as tmp:
        target = os.path.join(tmp, 'hint-poke')
        done = subprocess.run(
            ['gcc', '-O2', '-Wall', '-static', '-I',
             str(ROOT / 'src' / 'include' / 'hw' / 'misc'), '-o', target,
             str(source)], text=True, stderr=subprocess.PIPE)
        if done.returncode:
            raise SetupError(f'{source} does not compile: {done.stderr}')
        with open(target, 'rb') as program:
            return program.read()


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

    def test_example(self):
        """hint-poke, the reference driver in user space of a Linux guest."""
        with Guest('addr-hint-poke', POKE_SCRIPT,
                   files={'hint-poke': poke_program()}, smp=2,
                   devices=('edu', 'addr-hint-pci')) as guest:
            guest.wait_parked('counts')
            vcpu, vm = guest.counters('vcpu'), guest.counters('vm')
            of_vcpu = hits_of_vcpus(guest.vm)
            guest.resume()
            result = guest.finish()
        self.assertEqual(result['identity'], '0x010000ed')
        self.assertEqual(result['written'], '0xffffedcb')
        self.assertEqual(result['posted'], '0xffff5432')
        self.assertRegex(result['timed'], r'^1000 reads each: \d+ ns at the '
                         r'address, \d+ ns by the hint$')
        self.assertEqual(result['rounds'], '40')
        self.assertNotIn('wrong', result.results)
        self.assertIn('has no register at 0x100000', result['beyond'])
        self.assertIn('has no register', result['nothing'])
        self.assertIn('usage:', result['usage'])
        # each run gives its hint back
        self.assertEqual(vm['addr-hint-registered'], 0)
        self.assertEqual(vm['addr-hint-registrations'], 6 + 80)
        self.assertEqual(vm['addr-hint-doorbell-writes'], 1)
        self.assertEqual(vcpu['addr-hint-window-hits'], 4 + 1000 + 80)
        self.assertEqual(vcpu['addr-hint-window-stale'], 0)
        self.assertGreaterEqual(of_vcpu[1], 1000)
        self.assertLessEqual(of_vcpu[0], 4 + 80)


if __name__ == '__main__':
    unittest.main()
