# SPDX-License-Identifier: GPL-2.0-or-later
"""Network traffic of a guest with an assigned card, both ways, checked."""
from labtest import LabTest

TRACE = 'kvm_irqchip_add_msi_route,vfio_msi_interrupt'

# $1: network number.  Both directions, with digests; the card is found by its
# driver, because a virtual function has an address of its own making.
TRAFFIC = '''
card()
{
    for c in /sys/class/net/*; do
        d=$(readlink $c/device/driver) && [ "${d##*/}" = "$1" ] && echo ${c##*/}
    done
}

# up DRIVER NETWORK: the card of a driver gets its address and a carrier
up()
{
    n=0
    while [ -z "$(card $1)" ]; do
        n=$((n + 1)); [ $n -lt 100 ] || return 1; usleep 100000
    done
    c=$(card $1)
    ip link set $c up
    ip addr add 10.$2.0.2/24 dev $c
    n=0
    while [ "$(cat /sys/class/net/$c/carrier)" != 1 ]; do
        n=$((n + 1)); [ $n -lt 100 ] || return 2; usleep 100000
    done
}

# traffic NETWORK SIZE_KIB
traffic()
{
    wget -q -O /tmp/down http://10.$1.0.1:$((8000 + $1))/down || return 3
    result down $(sha256sum </tmp/down | cut -d' ' -f1)
    head -c ${2}k /dev/urandom >/tmp/up
    nc -w 5 10.$1.0.1 $((9000 + $1)) </tmp/up || return 4
    result up $(sha256sum </tmp/up | cut -d' ' -f1)
}
'''


class TrafficTest(LabTest):
    """A test with an assigned card."""

    def check_traffic(self, guest, number, digest):
        self.assertEqual(guest.wait_result('down'), digest)
        sent = guest.wait_result('up')
        self.assertEqual(self.received(number), sent)

    def nic(self, name, address, driver, number, size_kib=4096):
        """A guest sends and receives; its interrupts go through irqfds."""
        digest = self.serve(number, size_kib)
        self.receive(number)
        script = (TRAFFIC + f'up {driver} {number} || exit 1\n'
                  f'traffic {number} {size_kib} || exit 2\npark counts\n')
        with self.lab.guest(name, script, log=TRACE, devices=[
                f'vfio-pci,host={address},romfile=']) as guest:
            self.check_traffic(guest, number, digest)
            guest.wait_parked('counts')
            counts = self.lab.interrupts(rf'vfio-msix?\[\d+\]\({address}\)')
            guest.resume()
            guest.finish()
            log = guest.log_text()
        self.assertGreater(sum(counts.values()), 100, counts)
        self.assertIn('kvm_irqchip_add_msi_route', log)
        # would be a line per interrupt that took the way through user space
        self.assertEqual(log.count('vfio_msi_interrupt'), 0)
        return counts

    def vf(self, index=0):
        """Give a virtual function of the igb to VFIO; return its address."""
        return self.lab.run(f'a=$(make_vfs 2 | sed -n {index + 1}p); '
                            'to_vfio $a; echo $a')
