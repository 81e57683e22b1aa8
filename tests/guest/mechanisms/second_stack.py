# SPDX-License-Identifier: GPL-2.0-or-later
"""Second stack: a USB serial port whose reader is slower than the guest."""
import atexit
import socket
import threading
import time

from guest_kernel import load_kernel
from mechanism import Mechanism
from zpipe_peer import stream_program

SIZE = 32 * 1024            # all may wait in the device
PAUSE_S = 0.01

SCRIPT = f'''
for module in /usb/*.ko; do
    insmod $module
done
wait_for /dev/ttyUSB0 || exit 1
stty -F /dev/ttyUSB0 raw -echo
/stream make {SIZE} 7 >/dev/ttyUSB0
result sent $?
park counts
'''


def slow_reader(sock):
    """Read a little now and then."""
    while sock.recv(4096):
        time.sleep(PAUSE_S)


def options(properties):
    ours, qemus = socket.socketpair()
    for end in ours, qemus:
        atexit.register(end.close)
    qemus.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    qemus.set_inheritable(True)
    threading.Thread(target=slow_reader, args=(ours,), daemon=True).start()
    files = {'stream': stream_program().read_bytes()}
    for number, (name, data) in enumerate(
            load_kernel().load_order(('xhci_pci', 'ftdi_sio'))):
        files[f'usb/{number:02}-{name}.ko'] = data
    return {'files': files, 'args': (
        '-chardev', f'socket,id=port,fd={qemus.fileno()}', '-device',
        'qemu-xhci,id=usb', '-device', 'usb-serial,bus=usb.0,chardev=port,'
        f'always-plugged=on{properties}')}


MECHANISMS = [
    Mechanism(name='posted writes, USB serial, Linux, TCG',
              prefix='async-call', used='chardev-parked', script=SCRIPT,
              did=lambda r: f'{SIZE >> 10} KiB to a slow reader',
              off=lambda: options(''),
              on=lambda: options(',posted-writes=on')),
]
