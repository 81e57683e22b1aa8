# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-serial with posted writes: a reader that pauses stops no vCPU."""
import socket
import subprocess
import unittest

from guest import Guest, need_machine_property
from guest_kernel import load_kernel
from zpipe_peer import stream_program

MODULES = ('xhci_pci', 'ehci_pci', 'uhci_hcd', 'ftdi_sio')
SOME = 32 * 1024            # fits into what may wait in the device
MANY = 256 * 1024           # does not

SCRIPT = f'''
for module in /usb/*.ko; do
    insmod $module || result module_refused $module
done
wait_for /dev/ttyUSB0 || exit 1
stty -F /dev/ttyUSB0 raw -echo || exit 2
stream make {SOME} 3 >/dev/ttyUSB0 || exit 3
park some
stream make {MANY} 5 >/dev/ttyUSB0 &
sleep 1
park many
wait $! || exit 4
result all written
'''


def stream_bytes(size, seed):
    return subprocess.run([str(stream_program()), 'make', str(size),
                           str(seed)], stdout=subprocess.PIPE, check=True,
                          stderr=subprocess.DEVNULL).stdout


class UsbSerial(unittest.TestCase):

    def setUp(self):
        need_machine_property('query-block-deadline-ms')
        # a socket that holds little
        self.ours, self.qemus = socket.socketpair()
        self.qemus.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.addCleanup(self.ours.close)
        self.addCleanup(self.qemus.close)
        self.ours.settimeout(60)

    def guest(self, name, controllers):
        files = {'bin/stream': stream_program().read_bytes()}
        for number, (module, data) in enumerate(
                load_kernel().load_order(MODULES)):
            files[f'usb/{number:02}-{module}.ko'] = data
        guest = Guest(name, SCRIPT, files=files, devices=(
            *controllers, 'usb-serial,id=serial,bus=u.0,chardev=port,'
            'always-plugged=on,posted-writes=on'))
        self.qemus.set_inheritable(True)
        guest.vm.add_args('-chardev', 'socket,id=port,fd='
                          f'{self.qemus.fileno()}')
        return guest

    def receive(self, size):
        data = b''
        while len(data) < size:
            more = self.ours.recv(size - len(data))
            self.assertTrue(more, f'{len(data)} of {size} bytes')
            data += more
        return data

    def check(self, name, controllers):
        with self.guest(name, controllers) as guest:
            # nobody reads: without posted writes the guest would hang here
            guest.wait_parked('some')
            guest.resume()
            # nor does more than the device holds stop any vCPU
            guest.wait_parked('many')
            self.assertTrue(self.receive(SOME + MANY) == stream_bytes(SOME, 3)
                            + stream_bytes(MANY, 5))
            counts = guest.counters('vm')
            self.assertGreater(counts['async-call-chardev-parked'], 0)
            self.assertEqual(counts['async-call-chardev-refused'], 0)
            guest.resume()
            result = guest.finish()
        self.assertEqual(result['all'], 'written')
        self.assertNotIn('module_refused', result.results)

    def test_xhci(self):
        self.check('usb-serial-xhci', ('qemu-xhci,id=u',))

    def test_uhci(self):
        self.check('usb-serial-uhci', ('piix3-usb-uhci,id=u',))

    def test_unplug(self):
        """What waits is dropped with the device."""
        with self.guest('usb-serial-unplug', ('qemu-xhci,id=u',)) as guest:
            guest.wait_parked('some')
            guest.vm.cmd('device_del', id='serial')
            guest.wait_for(lambda: guest.vm.event_wait('DEVICE_DELETED', 1),
                           'DEVICE_DELETED')


if __name__ == '__main__':
    unittest.main()
