# SPDX-License-Identifier: GPL-2.0-or-later
"""No interrupt of an assigned device is lost while its affinity is changed.

A disk is read block by block: each read is one interrupt, and the next one
waits for it.  They are counted at the device (a trace event of the outer QEMU)
and in the guest, and in the emulated host: as it counts them, and how often it
ran the handler (irq_handler_entry).
"""
import re
import time
import unittest
from pathlib import PurePosixPath

from labtest import LabTest, long_test

READS = 100000
CHUNK = 5000
STAY_US = 50000
# of one chunk; the emulation gets through some hundred reads a second
CHUNK_LIMIT_S = 300
TRIGGER = PurePosixPath(
    '/sys/kernel/tracing/events/irq/irq_handler_entry/trigger')

SCRIPT = f'''
counts()
{{
    awk '/nvme0q1/ {{ for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) n += $i }}
         END {{ print n + 0 }}' /proc/interrupts
}}
wait_for /dev/nvme0n1 || exit 1
sleep 2
result before $(counts)
park ready
n=0
while [ $n -lt {READS} ]; do
    dd if=/dev/nvme0n1 of=/dev/null bs=512 count={CHUNK} skip=$n \\
        iflag=direct 2>/dev/null || exit 2
    n=$((n + {CHUNK}))
    result read$n $(counts)
done
sleep 2
result after $(counts)
result late $(dmesg | grep -c 'nvme.*timeout')
park done
'''


@long_test(f'{READS} interrupts take minutes')
class Lost(LabTest):
    lab_name = 'irq-lost'
    lab_options = {'extra': ['-trace', 'pci_nvme_irq_msix']}
    limit_s = 3600

    def device(self):
        """Interrupts of the disk's queue that its controller has raised."""
        text = (self.lab.folder / 'cpu.log').read_text(errors='replace')
        return len(re.findall(r'pci_nvme_irq_msix raising MSI-X IRQ vector 1$',
                              text, re.M))

    def host(self):
        return sum(self.lab.interrupts(
            rf'vfio-msix\[1\]\({self.address}\)').values())

    def trace_handler(self):
        """Count each run of the handler from now on."""
        number, = [name.split()[0] for name in self.lab.interrupts(
            rf'vfio-msix\[1\]\({self.address}\)')]
        self.lab.run(f'''
            mount -t tracefs tracefs /sys/kernel/tracing
            echo 'hist:keys=irq if irq == {number}' >{TRIGGER}''')

    def handled(self):
        text = self.lab.run(f'cat {TRIGGER.parent}/hist')
        return sum(map(int, re.findall(r'hitcount: +(\d+)', text)))

    def test_none_lost(self):
        self.address = self.lab.run(
            'a=$(pci_find 1b36:0010); to_vfio $a; echo $a')
        with self.lab.guest(
                'lost', SCRIPT, timeout=180, log='irq_affinity_refused',
                devices=[f'vfio-pci,id=disk,host={self.address},'
                         'irq-affinity=follow'],
                args=['-object', 'irq-affinity,id=follow']) as guest:
            guest.wait_parked('ready')
            self.trace_handler()
            before = self.device(), self.host()
            thread, = guest.vcpu_threads()
            mover = self.lab.run(f'''
                (while :; do
                    taskset -p 1 {thread} >/dev/null; usleep {STAY_US}
                    taskset -p 2 {thread} >/dev/null; usleep {STAY_US}
                done) >/dev/null 2>&1 & echo $!''')
            guest.resume()
            start = time.monotonic()
            for n in range(CHUNK, READS + 1, CHUNK):
                guest.limit(CHUNK_LIMIT_S)
                guest.wait_result(f'read{n}')
            seconds = time.monotonic() - start
            guest.limit(CHUNK_LIMIT_S)
            guest.wait_parked('done')
            self.lab.run(f'kill {mover}')
            after = self.device(), self.host()
            handled = self.handled()
            info, = guest.vm.cmd('query-irq-affinity')
            guest.resume()
            results = guest.finish()
        seen = int(results['after']) - int(results['before'])
        device, host = (b - a for a, b in zip(before, after))
        print(f'{device} interrupts of the device, {handled} handled and '
              f'{host} counted in the host, {seen} in the guest; '
              f'{info["moves"]} moves of them, in {seconds:.0f} s', flush=True)
        self.assertGreaterEqual(device, READS)
        self.assertEqual(seen, device)
        self.assertEqual(handled, device)
        # One that comes to the new processor while the old one still handles
        # the last is left to that, and not counted (handle_edge_irq()).
        self.assertLessEqual(host, device)
        self.assertGreaterEqual(host, device - info['moves'])
        self.assertEqual(results['late'], '0')
        self.assertGreater(info['moves'], READS // 1000)
        self.assertEqual(info['foreign'], 0, info)


if __name__ == '__main__':
    unittest.main()
