# SPDX-License-Identifier: GPL-2.0-or-later
"""Assigned devices and on-demand mapped memory exclude each other.

The assigned device is a vfio-user one, served by a second QEMU: that takes the
same way to be attached as real ones, and needs no hardware.
"""
import json
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from cxl_guest import bare_options
from guest import is_base_build
from hotpath_paths import qemu_binary, report_dir, use_qemu_python

LIMIT_S = 20


def as_json(device):
    """Return a -device value as JSON: those are made in their own order."""
    driver, *properties = device.split(',')
    found = dict(p.split('=', 1) for p in properties)
    return json.dumps({'driver': driver, **{
        k: int(v) if v.isdigit() else v for k, v in found.items()}})


class Guards(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no ondemand-policy')
        folder = tempfile.TemporaryDirectory(prefix='hotguard-', dir='/tmp')
        self.addCleanup(folder.cleanup)
        self.socket = Path(folder.name) / 'vfu'
        log = open(report_dir('guest', 'guards') / 'server.log', 'w')
        self.addCleanup(log.close)
        server = subprocess.Popen(
            [str(qemu_binary()), '-machine', 'x-remote,vfio-user=on',
             '-nodefaults', '-display', 'none', '-device', 'edu,id=dev',
             '-object', json.dumps({
                 'qom-type': 'x-vfio-user-server', 'id': 'server',
                 'device': 'dev',
                 'socket': {'type': 'unix', 'path': str(self.socket)}})],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        deadline = time.monotonic() + LIMIT_S
        while not self.socket.exists():
            self.assertIsNone(server.poll(), 'the vfio-user server ended')
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def assigned(self, bus='pcie.0'):
        return {'driver': 'vfio-user-pci', 'bus': bus, 'id': 'assigned',
                'socket': {'type': 'unix', 'path': str(self.socket)}}

    def arguments(self, policy='threshold=64'):
        """Return (machine, objects, devices) with CXL memory."""
        options = bare_options(policy)
        return (options['machine'], list(options['args']),
                [x for d in options['devices']
                 for x in ('-device', as_json(d))])

    def error_of(self, *args):
        done = subprocess.run(
            [str(qemu_binary()), '-nodefaults', '-display', 'none', '-S',
             '-m', '64M', *args], stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S)
        self.assertEqual(done.returncode, 1, done.stdout)
        return done.stdout

    def launch(self, policy):
        use_qemu_python()
        from qemu.machine import QEMUMachine    # found only from here on
        machine, objects, devices = self.arguments(policy)
        vm = QEMUMachine(str(qemu_binary()), base_temp_dir='/tmp',
                         log_dir=str(report_dir('guest', 'guards')))
        vm.set_machine(machine)
        vm.add_args('-nodefaults', '-S', '-m', '64M', *objects, *devices,
                    '-device', 'pcie-root-port,id=hot,chassis=9')
        vm.launch()
        self.addCleanup(vm.shutdown, hard=True)
        return vm

    def test_memory_first(self):
        machine, objects, devices = self.arguments()
        said = self.error_of('-M', machine, *objects, *devices, '-device',
                             json.dumps(self.assigned()))
        self.assertIn("cannot be assigned (VFIO) while "
                      "'/machine/peripheral/cxl-mem0' has an "
                      "ondemand-policy", said)

    def test_assigned_first(self):
        machine, objects, devices = self.arguments()
        said = self.error_of('-M', machine, *objects, '-device',
                             json.dumps(self.assigned()), *devices)
        self.assertIn('An ondemand-policy cannot be used together with '
                      'assigned devices', said)

    # The same with ondemand-mem-pci
    objects = ('-M', 'q35', '-object', 'ondemand-policy,id=pol', '-object',
               'memory-backend-ram,id=ram,size=1M')
    window = json.dumps({'driver': 'ondemand-mem-pci', 'id': 'window',
                         'policy': 'pol', 'memdev': 'ram'})

    def test_window_first(self):
        said = self.error_of(*self.objects, '-device', self.window, '-device',
                             json.dumps(self.assigned()))
        self.assertIn("while '/machine/peripheral/window' has an "
                      'ondemand-policy', said)

    def test_window_second(self):
        said = self.error_of(*self.objects, '-device',
                             json.dumps(self.assigned()), '-device',
                             self.window)
        self.assertIn('An ondemand-policy cannot be used together with '
                      'assigned devices', said)

    def test_hotplug(self):
        vm = self.launch('threshold=64')
        from qemu.qmp import ExecuteError       # found only from here on
        with self.assertRaises(ExecuteError) as caught:
            vm.cmd('device_add', **self.assigned('hot'))
        self.assertIn('ondemand-policy', str(caught.exception))
        self.assertEqual(vm.cmd('query-status')['status'], 'prelaunch')

    def test_without_policy(self):
        """The guard must not stop what has nothing to do with it."""
        machine, objects, devices = self.arguments(None)
        done = subprocess.Popen(
            [str(qemu_binary()), '-nodefaults', '-display', 'none', '-S',
             '-m', '64M', '-M', machine, *objects, *devices, '-device',
             json.dumps(self.assigned())], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(done.wait)
        self.addCleanup(done.kill)
        self.addCleanup(done.stdout.close)
        with self.assertRaises(subprocess.TimeoutExpired):
            done.wait(3)

    def test_only_migratable(self):
        machine, objects, devices = self.arguments()
        said = self.error_of('-only-migratable', '-M', machine, *objects,
                             *devices)
        self.assertIn("'ondemand-policy'", said)
        self.assertIn('only-migratable', said)


if __name__ == '__main__':
    unittest.main()
