# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest with ondemand-mem-pci.

    with Guest('mem', SCRIPT + 'report sum sum 16',
               **device_options('threshold=64', make_file(folder))) as guest: ...
"""
import hashlib
from pathlib import Path

from cxl_guest import guest_program

MIB = 1024 * 1024
SIZE = 16 * MIB

# The device, or what takes its place, is on slot 0x10; report KEY ARGUMENTS:
# what cxlmem prints
SCRIPT = '''
dev=/sys/bus/pci/devices/0000:00:10.0
echo 1 >$dev/enable || exit 20
window=$dev/resource0
[ -e $dev/resource2 ] && window=$dev/resource2      # ivshmem-plain
report()
{
    key=$1
    shift
    said=$(cxlmem $window "$@") || { result failed "$key: $said"; exit 30; }
    result $key $said
}
'''


def make_file(folder, size=SIZE):
    """Make a file whose contents are the same each time; return its path."""
    path = Path(folder) / 'window'
    block = b''.join(hashlib.sha256(bytes([n])).digest() for n in range(128))
    with open(path, 'wb') as f:
        for number in range(size // len(block)):
            f.write(number.to_bytes(8, 'little') + block[8:])
    return path


def device_options(policy, path, more=''):
    """Return the options of a Guest with the device on slot 0x10."""
    return {'devices': ('ondemand-mem-pci,id=mem0,addr=10.0,policy=pol,'
                        f'file={path}{more}',),
            'args': ('-object', f'ondemand-policy,id=pol,{policy}'),
            'files': {'bin/cxlmem': guest_program('cxlmem')}}


def plain_options(path, size=SIZE):
    """The same contents, mapped whole: plain RAM that is a BAR."""
    return {'devices': ('ivshmem-plain,addr=10.0,memdev=ram',),
            'args': ('-object', 'memory-backend-file,id=ram,share=off,'
                     f'mem-path={path},size={size}'),
            'files': {'bin/cxlmem': guest_program('cxlmem')}}
