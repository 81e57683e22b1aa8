# SPDX-License-Identifier: GPL-2.0-or-later
"""Growth of storage: a disk on a file system that is too small for it."""
import atexit
import os
import unittest

from mechanism import Mechanism
from storage_daemons import Daemons, daemon_binary
from storage_vm import MIB, Tmpfs, guarded, make_image

GUEST_MIB = 16
START = 2 * MIB             # too small; enough is 32 MiB

SCRIPT = f'''
wait_for /dev/vda || exit 1
dd if=/dev/zero bs=1M count={GUEST_MIB} | tr '\\0' 'x' |
    dd of=/dev/vda bs=1M iflag=fullblock oflag=direct
result written $?
echo 3 >/proc/sys/vm/drop_caches
result sum $(dd if=/dev/vda bs=1M count={GUEST_MIB} | sha256sum | cut -c1-8)
park counts
'''


def possible():
    """What is needed to make a file system grow."""
    if os.geteuid():
        return 'mounting needs root'
    try:
        daemon_binary('qemu-storage-agent')
        Tmpfs(START).close()
    except unittest.SkipTest as reason:
        return str(reason)
    return None


def off():
    storage = Tmpfs(2 * GUEST_MIB * MIB)
    atexit.register(storage.close)
    make_image(storage)
    return {'args': ('-blockdev', f'file,node-name=file,filename='
                     f'{storage.path}', '-blockdev', 'qcow2,node-name=disk,'
                     'file=file', '-device', 'virtio-blk-pci,drive=disk')}


def on():
    storage = Tmpfs(START)
    atexit.register(storage.close)
    make_image(storage)
    daemons = Daemons([{'provider': 'tmpfs', 'path': f'{storage.dir}/*',
                        'chunk': MIB, 'align': 4096, 'max': 64 * MIB}])
    atexit.register(daemons.close)
    daemons.start_controller()
    daemons.start_agent()
    return {'args': guarded(storage, policy='hold') + (
        '-device', 'virtio-blk-pci,drive=disk,id=disk0', '-qmp',
        f'unix:{daemons.qmp}/demo.qmp,server=on,wait=off')}


MECHANISMS = [
    Mechanism(name='growth of storage, Linux, TCG', prefix='storage',
              used='requests', possible=possible, script=SCRIPT,
              did=lambda r: f'wrote {GUEST_MIB} MiB to a disk, checksum '
                            f'{r["sum"]}',
              off=off, on=on),
]
