# SPDX-License-Identifier: GPL-2.0-or-later
"""Threshold-mapped memory: CXL memory (ondemand-policy)."""
from cxl_guest import CXL_SCRIPT, bare_options, cxl_options
from mechanism import Mechanism

SCRIPT = CXL_SCRIPT + '''
report fill fill 5 16
report again sum 16
report threads threads 2 20
park counts
'''


def linux_did(results):
    return ('wrote and summed 16 MiB of CXL memory, '
            f'checksum {results["fill"][:8]}; 2 threads: {results["threads"]}')


def bare_did(results):
    return f'code in CXL memory: {results["ran"]}, {results["changed"]}'


MECHANISMS = [
    Mechanism(name='on-demand map, CXL, Linux, TCG', prefix='ondemand-map',
              used='maps', did=linux_did, script=SCRIPT,
              off=cxl_options, on=lambda: cxl_options('threshold=64')),
    Mechanism(name='on-demand map, CXL, bare metal, TCG', payload='cxl',
              prefix='ondemand-map', used='maps', did=bare_did,
              off=bare_options(), on=bare_options('threshold=64')),
]
