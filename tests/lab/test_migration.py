# SPDX-License-Identifier: GPL-2.0-or-later
"""Two inner QEMUs migrate a guest between them."""
import time
import unittest

import labtest

# A file that must survive, and memory that changes all the time.
SCRIPT = '''
head -c 16m /dev/urandom >/tmp/kept
result size $(wc -c </tmp/kept)
before=$(sha256sum </tmp/kept)
( while :; do dd if=/dev/zero of=/tmp/busy bs=64k count=64 2>/dev/null; done ) &
writer=$!
park ready
kill $writer
[ "$before" = "$(sha256sum </tmp/kept)" ] && result kept same || result kept differs
result boot $(cat /proc/sys/kernel/random/boot_id)
'''


class Migration(labtest.LabTest):

    def wait_migrated(self, guest):
        while True:
            state = guest.vm.cmd('query-migrate')
            if state['status'] == 'completed':
                return state
            self.assertNotEqual(state['status'], 'failed', state)
            guest.check_time('migration completed')
            time.sleep(0.1)

    def test_between_two_qemus(self):
        devices = ['virtio-rng-pci,rng=rng',
                   'virtio-net-pci,netdev=n0,romfile=']
        args = ['-object', 'rng-random,id=rng,filename=/dev/urandom',
                '-netdev', 'user,id=n0,restrict=on']
        with self.lab.guest('source', SCRIPT, devices=devices,
                            args=args) as source:
            source.wait_parked('ready')
            with self.lab.guest('target', None, devices=devices,
                                args=[*args, '-incoming',
                                      'unix:/tmp/migration']) as target:
                source.vm.cmd('migrate', uri='unix:/tmp/migration')
                state = self.wait_migrated(source)
                self.assertEqual(source.vm.cmd('query-status')['status'],
                                 'postmigrate')
                target.resume()
                results = target.finish()
        self.assertEqual(source.results['size'], str(16 << 20))
        self.assertEqual(results['kept'], 'same')
        # pages that changed meanwhile were sent again
        self.assertGreaterEqual(state['ram']['dirty-sync-count'], 2)


if __name__ == '__main__':
    unittest.main()
