# SPDX-License-Identifier: GPL-2.0-or-later
"""Posted writes of isa-fdc: a bare-metal guest's vCPU writes a floppy disk."""
import tempfile
import unittest

from bare_metal import BareGuest, build_image, kvm_probe
from guest import hotpath_counters, is_base_build

CYLINDERS = 2
SECTORS = CYLINDERS * 36
IMAGE_SIZE = 1440 * 1024


def pattern():
    return bytes((n * 0x9e3779b9 & 0xffffffff) >> 24
                 for n in range(SECTORS * 512))


class PostedFloppy(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no posted writes')
        self.image = tempfile.NamedTemporaryFile()
        self.image.truncate(IMAGE_SIZE)
        self.addCleanup(self.image.close)

    def write_disk(self, accel, posted='on', machine='q35', during=None):
        image = build_image('floppy', {'CYLINDERS': CYLINDERS})
        drive = f'file,node-name=disk,filename={self.image.name}'
        with BareGuest(f'floppy-{accel.replace(",", "-")}-{posted}', image,
                       accel=accel, machine=machine,
                       devices=(f'isa-fdc,posted-writes={posted}',
                                'floppy,drive=disk'),
                       args=('-blockdev', drive)) as guest:
            if during:
                during(guest)
            results = guest.wait_end()
            count = hotpath_counters(guest.vm, 'vm')
            vcpu = hotpath_counters(guest.vm, 'vcpu')
        self.assertEqual((results['bad'], results['wrong']), (0, 0))
        self.assertEqual(self.image.read(), pattern() +
                         bytes(IMAGE_SIZE - SECTORS * 512))
        return count, vcpu

    def check_posted(self, count):
        # each sector's write waits, and the guest is polite
        self.assertEqual(count['async-call-mmio-parked'], SECTORS)
        self.assertGreater(count['async-call-mmio-inlined'], SECTORS * 511)
        self.assertEqual(count['posted-mmio-waited'], 0)
        self.assertEqual(count['posted-mmio-now'], 0)

    def test_off(self):
        count, _ = self.write_disk('tcg', 'off')
        self.assertEqual(count, {})

    def test_tcg(self):
        self.check_posted(self.write_disk('tcg')[0])

    def test_tcg_single(self):
        self.check_posted(self.write_disk('tcg,thread=single')[0])

    def test_dispatch_hints(self):
        count, vcpu = self.write_disk('tcg', machine='q35,dispatch-hints=on')
        self.check_posted(count)
        self.assertGreater(vcpu['addr-hint-hits'], SECTORS * 512)

    def test_kvm(self):
        state, why = kvm_probe()
        if state != 'works':
            self.skipTest(f'KVM not used: {why}')
        self.check_posted(self.write_disk('kvm')[0])

    def test_stop(self):
        """What is on its way at a stop is neither lost nor done twice."""
        def stop_often(guest):
            for _ in range(50):
                guest.vm.cmd('stop')
                guest.vm.cmd('cont')

        count, _ = self.write_disk('tcg', during=stop_often)
        self.check_posted(count)


if __name__ == '__main__':
    unittest.main()
