# SPDX-License-Identifier: GPL-2.0-or-later
"""Device access by address hint: the reference table (dispatch-hints=on)."""
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


BARE = {'payload': 'io', 'prefix': 'addr-hint', 'used': 'hits',
        'did': bare_did, 'on': ON, 'needs': 'dispatch-hints'}
BARE_OPTIONS = {'defines': {'COUNT': 1000},
                'devices': ('pci-testdev,addr=4.0', 'edu,addr=5.0')}

MECHANISMS = [
    Mechanism(name='address hint, Linux, TCG', prefix='addr-hint',
              used='hits', did=linux_did, on=ON, needs='dispatch-hints',
              script=IO_SCRIPT + 'park counts\n',
              options={'devices': ('edu',)}),
    Mechanism(name='address hint, bare metal, TCG', **BARE,
              options={**BARE_OPTIONS, 'accel': 'tcg'}),
    Mechanism(name='address hint, bare metal, KVM', **BARE,
              options={**BARE_OPTIONS, 'accel': 'kvm'}, possible=kvm_reason),
]
