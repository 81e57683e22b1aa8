# SPDX-License-Identifier: GPL-2.0-or-later
"""Asynchronous pipe: a guest's port that a process of the host reads."""
import atexit
import functools
import shutil
import tempfile

from mechanism import Mechanism
from zpipe_peer import Peer, stream_program

SIZE = 64 << 20
PORT = 'virtserialport,bus=zserial.0,chardev=data,name=data'

# What it sends leads to the same results with either chardev.
SCRIPT = f'''
for p in /sys/class/virtio-ports/vport*; do
    [ "$(cat "$p/name")" != data ] || port=/dev/${{p##*/}}
done
exec 4>"$port"
/stream make {SIZE} 7 >&4
result sent $?
park counts
'''


@functools.cache
def folder():
    path = tempfile.mkdtemp(prefix='hotzp-', dir='/tmp')
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def options(chardev):
    return {'args': ['-device', 'virtio-serial-pci,id=zserial', '-chardev',
                     chardev, '-device', PORT],
            'files': {'stream': stream_program().read_bytes()}}


def off():
    return options('file,id=data,path=/dev/null')


def on():
    """The peer connects as soon as QEMU listens, and checks every byte."""
    peer = Peer(f'{folder()}/data', '--reconnect=20', receive=(SIZE, 7))
    atexit.register(peer.close)
    return options(f'zpipe,id=data,path={folder()}/data,server=on,wait=on')


MECHANISMS = [
    Mechanism(name='asynchronous pipe, Linux, TCG', prefix='zpipe',
              used='tx-direct-bytes', off=off, on=on, script=SCRIPT,
              did=lambda r: f'{SIZE >> 20} MiB through a port to a process'),
]
