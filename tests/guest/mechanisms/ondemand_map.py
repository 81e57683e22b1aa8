# SPDX-License-Identifier: GPL-2.0-or-later
"""Threshold-mapped memory: CXL memory and ondemand-mem-pci."""
from cxl_guest import CXL_SCRIPT, bare_options, cxl_options
from hotpath_paths import GUEST_DIR
from mechanism import Mechanism
from ondemand_guest import SCRIPT as MEM_SCRIPT
from ondemand_guest import device_options, make_file, plain_options

SCRIPT = CXL_SCRIPT + '''
report fill fill 5 16
report again sum 16
report threads threads 2 20
park counts
'''


def linux_did(results):
    return ('wrote and summed 16 MiB of CXL memory, '
            f'checksum {results["fill"][:8]}; 2 threads: {results["threads"]}')


WINDOW_SCRIPT = MEM_SCRIPT + '''
report file sum 4
report fill fill 5 4
report again sum 4
park counts
'''


def window_did(results):
    return ('read 4 MiB of a file through a window, checksum '
            f'{results["file"][:8]}, and wrote there: {results["again"][:8]}')


def bare_did(results):
    return f'code in CXL memory: {results["ran"]}, {results["changed"]}'


MECHANISMS = [
    Mechanism(name='on-demand map, CXL, Linux, TCG', prefix='ondemand-map',
              used='maps', did=linux_did, script=SCRIPT,
              off=cxl_options, on=lambda: cxl_options('threshold=64')),
    Mechanism(name='on-demand map, a file in a BAR, Linux, TCG',
              prefix='ondemand-map', used='maps', did=window_did,
              script=WINDOW_SCRIPT,
              off=lambda: plain_options(make_file(GUEST_DIR)),
              on=lambda: device_options('threshold=64',
                                        make_file(GUEST_DIR))),
    Mechanism(name='on-demand map, CXL, bare metal, TCG', payload='cxl',
              prefix='ondemand-map', used='maps', did=bare_did,
              off=bare_options(), on=bare_options('threshold=64')),
]
