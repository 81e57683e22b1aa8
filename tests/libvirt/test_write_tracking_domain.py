# SPDX-License-Identifier: GPL-2.0-or-later
"""Late unplug of a failover pair, from a libvirt domain."""
import unittest

from libvirtd import LibvirtTest

SCRIPT = '''
n=0
while :; do
    n=$((n + 1))
    result round $n
    sleep 1
done
'''


class WriteTracking(LibvirtTest):

    def test_override(self):
        domain = self.domain('write-tracking', SCRIPT)
        domain.start()
        domain.wait(lambda r: int(r.get('round', 0)) >= 1, 'the guest')
        path = '/machine/peripheral/ua-standby'
        for name, value in (('failover', True), ('failover-unplug', 'late'),
                            ('failover-unplug-timeout-ms', 30000)):
            self.assertEqual(self.daemon.qmp(domain.name, 'qom-get', path=path,
                                             property=name), value)
        self.assertEqual(self.daemon.qmp(domain.name,
                                         'query-write-tracking'), [])
        self.daemon.virsh('destroy', domain.name)


if __name__ == '__main__':
    unittest.main()
