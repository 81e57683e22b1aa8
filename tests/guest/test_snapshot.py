# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's state is saved and loaded in the middle of disk writes.

Each case runs with the mechanisms off and on, and goes from one to the other:
a mechanism that changes the migration stream fails here.
"""
import hashlib
import subprocess
import time
import unittest

from guest import Guest, need_machine_property
from hotpath_paths import qemu_binary, report_dir

BLOCKS = 200
ON = 'q35,dispatch-hints=on'

# Every block gets its number as content, so that a write which was lost or
# repeated at the wrong place shows in the digest.
SCRIPT = f'''
wait_for /dev/vda || exit 1
n=0
while [ $n -lt {BLOCKS} ]; do
    printf '%-65535s\\n' "block $n" >/tmp/block
    dd if=/tmp/block of=/dev/vda bs=64k seek=$n oflag=direct conv=notrunc \\
        2>/dev/null || exit 2
    result progress $n
    n=$((n + 1))
done
result config $(cat /sys/bus/pci/devices/*/config | sha256sum)
result digest $(dd if=/dev/vda bs=64k count={BLOCKS} 2>/dev/null | sha256sum)
'''


def wanted_digest():
    digest = hashlib.sha256()
    for number in range(BLOCKS):
        digest.update(f'block {number}'.ljust(65535).encode() + b'\n')
    return digest.hexdigest()


class Snapshot(unittest.TestCase):

    def disk(self, name):
        path = report_dir('guest', name) / 'disk.qcow2'
        subprocess.run([str(qemu_binary('qemu-img')), 'create', '-q', '-f',
                        'qcow2', str(path), '32M'], check=True)
        self.addCleanup(path.unlink)
        return ('-blockdev', f'driver=file,node-name=file,filename={path}',
                '-blockdev', 'driver=qcow2,node-name=disk,file=file',
                '-device', 'virtio-blk-pci,drive=disk')

    def hmp(self, guest, line):
        said = guest.vm.cmd('human-monitor-command', command_line=line)
        self.assertEqual(said.strip(), '', f'monitor command "{line}"')

    def reached(self, guest, number):
        guest.wait_for(lambda: int(guest.results.get('progress', -1)) >= number,
                       f'block {number}')

    def check_digest(self, result):
        self.assertEqual(result['digest'].split()[0], wanted_digest())

    def savevm(self, machine, name):
        with Guest(name, SCRIPT, machine=machine,
                   args=self.disk(name)) as guest:
            self.reached(guest, 50)
            self.hmp(guest, 'savevm middle')
            self.reached(guest, 120)
            guest.results.clear()
            self.hmp(guest, 'loadvm middle')
            # lines from before the load may still be on their way
            guest.wait_for(
                lambda: 51 <= int(guest.results.get('progress', -1)) < 120,
                'a block between snapshot and load')
            self.check_digest(guest.finish())

    def migrate_out(self, guest, path):
        guest.vm.cmd('migrate', uri=f'file:{path}')
        while True:
            status = guest.vm.cmd('query-migrate')['status']
            if status == 'completed':
                return
            self.assertNotEqual(status, 'failed')
            guest.check_time('migration to a file')
            time.sleep(0.1)

    def migrate(self, source, destination, name):
        disk = self.disk(name)
        state = report_dir('guest', name) / 'state'
        with Guest(name, SCRIPT, machine=source, args=disk) as guest:
            self.reached(guest, 50)
            self.migrate_out(guest, state)
        with Guest(f'{name}-to', SCRIPT, machine=destination,
                   args=disk + ('-incoming', f'file:{state}')) as guest:
            result = guest.finish()
        state.unlink()
        self.assertIn('progress', result.results)
        self.check_digest(result)

    def test_savevm(self):
        self.savevm('q35', 'savevm')

    def test_migrate_to_file(self):
        self.migrate('q35', 'q35', 'migrate')

    def test_savevm_dispatch_hints(self):
        need_machine_property('dispatch-hints')
        self.savevm(ON, 'savevm-hints')

    def test_migrate_off_to_on(self):
        need_machine_property('dispatch-hints')
        self.migrate('q35', ON, 'migrate-off-on')

    def test_migrate_on_to_off(self):
        need_machine_property('dispatch-hints')
        self.migrate(ON, 'q35', 'migrate-on-off')


if __name__ == '__main__':
    unittest.main()
