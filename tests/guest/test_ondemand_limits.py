# SPDX-License-Identifier: GPL-2.0-or-later
"""Sections of the memory map and KVM's memory slots run out: no abort.

KVM of today has more slots than QEMU has sections.  The slots here are real
ones; only their number is that of an older KVM (kvm_slots.c).
"""
import unittest

from bare_metal import kvm_probe, run_bare
from guest import hotpath_counters, is_base_build
from hotpath_paths import report_dir
from ondemand_guest import MIB, make_file
from ondemand_vm import WINDOW, WindowVm, preloaded

SLOTS = 150
AT_ONCE = 'threshold=0,granule=4k,chunks=256,max-commits-per-s=1000'


class Limits(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no ondemand-mem-pci')
        self.name = 'limits-' + self.id().rsplit('.', 1)[1]
        self.path = make_file(report_dir('guest', self.name), MIB)
        self.addCleanup(self.path.unlink)

    def need_kvm(self):
        state, why = kvm_probe()
        if state != 'works':
            self.skipTest(f'KVM not used: {why}')

    def window_vm(self, **options):
        return WindowVm(self.name, AT_ONCE, f'file={self.path}', **options)

    def check_contents(self, vm):
        data = self.path.read_bytes()
        for n in range(vm.devices):
            at = WINDOW + n * MIB
            self.assertEqual(vm.read_bytes(at, MIB), data)
            vm.write(at + 0x5000, 0x1122334455667788 + n)
        for n in range(vm.devices):
            self.assertEqual(vm.read(WINDOW + n * MIB + 0x5000),
                             0x1122334455667788 + n)
            vm.write(WINDOW + n * MIB + 0x5000,
                     int.from_bytes(data[0x5000:0x5008], 'little'))

    def check_toggled(self, vm, reason):
        """All that is mapped goes and comes."""
        vm.wait_settled()
        self.assertEqual(set(vm.states()), {'mapped', f'refused {reason}'})
        mapped = vm.counters()['mapped-chunks']
        for _ in range(2):
            vm.set_bars(False)
            vm.set_bars(True)
            self.check_contents(vm)
        self.assertEqual(vm.counters()['mapped-chunks'], mapped)
        return mapped

    def test_slots_shown(self):
        """The window is in the memory map while it gets mapped."""
        self.need_kvm()
        with preloaded('kvm_slots', KVM_SLOTS=str(SLOTS)), \
                self.window_vm(accel='kvm', devices=2) as vm:
            vm.set_bars(True)
            self.assertGreater(self.check_toggled(vm, 'slots'), 10)

    def test_slots_hidden(self):
        """It is not; memory devices take what slots they may get; it is."""
        self.need_kvm()
        with preloaded('kvm_slots', KVM_SLOTS=str(SLOTS)), \
                self.window_vm(accel='kvm', memory='64M,slots=200,maxmem=4G'
                               ) as vm:
            vm.wait_settled()
            self.assertGreater(vm.counters()['mapped-chunks'], 10)
            said = self.plug_memory(vm, 200)
            self.assertIn('not enough free memory slots', said)
            self.check_toggled(vm, 'slots')

    def plug_memory(self, vm, most):
        """Plug memory devices until one is refused; return what QEMU says."""
        from qemu.qmp import ExecuteError
        for n in range(most):
            vm.cmd('object-add', **{'qom-type': 'memory-backend-ram',
                                    'id': f'ram{n}', 'size': 2 * MIB})
            try:
                vm.cmd('device_add', driver='pc-dimm', id=f'dimm{n}',
                       memdev=f'ram{n}')
            except ExecuteError as error:
                self.assertGreater(n, 10)
                return str(error)
        return 'all were taken'

    def check_hidden_sections(self, accel):
        """Many BARs' chunks come into the memory map all at once."""
        with self.window_vm(accel=accel, devices=10) as vm:
            vm.wait_settled()
            vm.set_bars(True)
            self.assertGreater(self.check_toggled(vm, 'sections'), 500)

    def test_sections_tcg(self):
        self.check_hidden_sections('tcg')

    def test_sections_kvm(self):
        self.need_kvm()
        self.check_hidden_sections('kvm')

    def check_running(self, accel, reason, more=0):
        """Two processors go on writing to what may not be mapped."""
        windows = [f'ondemand-mem-pci,id=more{n},addr={16 + n:x}.0,policy=all,'
                   f'file={self.path}' for n in range(more)]
        found = {}
        results = run_bare(
            'race', name=self.name, accel=accel, smp=2, timeout=120,
            devices=(*windows, 'ondemand-mem-pci,id=mem0,addr=4.0,policy=pol,'
                     f'file={self.path}'),
            args=('-object', f'ondemand-policy,id=all,{AT_ONCE}', '-object',
                  'ondemand-policy,id=pol,threshold=1,granule=4k,chunks=256'),
            at_end=lambda g: found.update(hotpath_counters(g.vm, 'vm')))
        self.assertEqual(results['errors'], 0)
        self.assertGreater(found['ondemand-map-maps'], 10)
        self.assertGreater(found[f'ondemand-map-refused-{reason}'], 0)

    def test_running_sections_tcg(self):
        self.check_running('tcg', 'sections', more=9)

    def test_running_sections_kvm(self):
        self.need_kvm()
        self.check_running('kvm', 'sections', more=9)

    def test_running_slots_kvm(self):
        self.need_kvm()
        with preloaded('kvm_slots', KVM_SLOTS=str(SLOTS)):
            self.check_running('kvm', 'slots')


if __name__ == '__main__':
    unittest.main()
