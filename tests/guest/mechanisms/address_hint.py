# SPDX-License-Identifier: GPL-2.0-or-later
"""Device access by address hint: dispatch-hints=on, and addr-hint-pci."""
from bare_metal import kvm_probe
from mechanism import Mechanism
from test_io import IO_SCRIPT

ON = {'machine': 'q35,dispatch-hints=on'}


def linux_did(results):
    return (f'{results["config_kinds"]} reads of all PCI configuration, 50 of '
            'the clock (ports); 60 rounds with edu (MMIO)')


def bare_did(results):
    return (f'{results["mmio_count"]} + {results["port_count"]} counted '
            f'device writes, checksum {results["checksum"]:08x}')


def kvm_reason():
    state, why = kvm_probe()
    return None if state == 'works' else f'KVM not used: {why}'


# Reads and writes edu where it is, or by a hint if a device gives one.
ASKED_SCRIPT = '''
find_device() {
    path=$(grep -l "$1" /sys/bus/pci/devices/*/device) || return
    path=${path%/device}
    echo 1 >"$path/enable"
}
bar() {
    sed -n "$1p" "$path/resource" | cut -d' ' -f1
}
find_device 0x11e8
place=$(bar 1)
if find_device 0x4148; then
    regs=$(bar 1)
    devmem $((regs + 0x10)) 32 $((place))
    devmem $((regs + 0x18)) 32 4096
    devmem $((regs + 0x2c)) 32 1
    place=$(($(bar 3) + $(devmem $((regs + 0x28)) 32) * 4096))
fi
n=0
sum=0
while [ $n -lt 60 ]; do
    devmem $((place + 4)) 32 $n
    sum=$((sum + $(devmem $((place + 4)) 32)))
    n=$((n + 1))
done
result rounds $n
result sum $sum
park counts
'''


def asked_did(results):
    return f'{results["rounds"]} writes and reads of edu (MMIO)'


ASKED = {'payload': 'hintio', 'prefix': 'addr-hint', 'used': 'window-hits',
         'did': asked_did, 'needs': 'dispatch-hints',
         'off': {'devices': ('edu,addr=5.0',)},
         'on': {'devices': ('edu,addr=5.0', 'addr-hint-pci,addr=6.0')}}
BARE = {'payload': 'io', 'prefix': 'addr-hint', 'used': 'hits',
        'did': bare_did, 'on': ON, 'needs': 'dispatch-hints'}
BARE_OPTIONS = {'defines': {'COUNT': 1000},
                'devices': ('pci-testdev,addr=4.0', 'edu,addr=5.0')}

MECHANISMS = [
    Mechanism(name='address hint, Linux, TCG', prefix='addr-hint',
              used='hits', did=linux_did, on=ON, needs='dispatch-hints',
              script=IO_SCRIPT + 'park counts\n',
              options={'devices': ('edu',)}),
    Mechanism(name='address hint asked for, Linux, TCG', prefix='addr-hint',
              used='window-hits', did=asked_did, needs='dispatch-hints',
              script=ASKED_SCRIPT, off={'devices': ('edu',)},
              on={'devices': ('edu', 'addr-hint-pci')}),
    Mechanism(name='address hint, bare metal, TCG', **BARE,
              options={**BARE_OPTIONS, 'accel': 'tcg'}),
    Mechanism(name='address hint, bare metal, KVM', **BARE,
              options={**BARE_OPTIONS, 'accel': 'kvm'}, possible=kvm_reason),
    Mechanism(name='address hint asked for, bare metal, KVM', **ASKED,
              options={'defines': {'COUNT': 1000}, 'accel': 'kvm'},
              possible=kvm_reason),
]
