# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/hotpath-top on a libvirt domain."""
import json
import subprocess
import unittest

from libvirtd import LibvirtTest
from guest import is_base_build
from hotpath_paths import ROOT

SCRIPT = '''
n=0
while :; do
    hwclock -r >/dev/null 2>&1
    n=$((n + 1))
    result round $n
done
'''


class HotpathTop(LibvirtTest):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no provider "hotpath"')

    def top(self, *args):
        return subprocess.run(
            [str(ROOT / 'scripts' / 'hotpath-top'), '--once', '-c',
             self.daemon.uri, *args], text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)

    def test_domain(self):
        """By its name, while libvirt has the monitor."""
        domain = self.domain('dispatch-hints', SCRIPT)
        domain.start()
        domain.wait(lambda r: 'round' in r, 'round')
        done = self.top('--json', '-i', '0.5', domain.name)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        vm, = json.loads(done.stdout)['vms']
        self.assertEqual(vm['vm'], domain.name)
        hits = [s for s in vm['mechanisms']['addr-hint']
                if s['name'] == 'addr-hint-hits']
        self.assertGreater(sum(s['value'] for s in hits), 0)
        self.assertTrue(all(s['rate_per_s'] is not None for s in hits))
        text = self.top('-i', '0', f'domain:{domain.name}')
        self.assertIn(f'{domain.name}: addr-hint', text.stdout)

    def test_no_domain(self):
        done = self.top('nobody-has-this-name')
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn('nobody-has-this-name', done.stderr)


if __name__ == '__main__':
    unittest.main()
