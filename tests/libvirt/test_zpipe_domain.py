# SPDX-License-Identifier: GPL-2.0-or-later
"""A port on an asynchronous pipe, in a libvirt domain."""
import shutil
import tempfile
import unittest
from pathlib import Path

from libvirtd import LibvirtTest, VirshError
from guest import is_base_build
from zpipe_peer import Peer, stream_program

SIZE = 32 << 20

# Sends a stream, then checks the one that comes back.
SCRIPT = f'''
for p in /sys/class/virtio-ports/vport*; do
    [ "$(cat "$p/name")" != data ] || port=/dev/${{p##*/}}
done
exec 4<>"$port"
/stream check {SIZE} 3 <&4 &
checker=$!
/stream make {SIZE} 4 >&4
wait $checker
result exact $?
while :; do sleep 1; done
'''


class Zpipe(LibvirtTest):

    def setUp(self):
        if is_base_build():
            raise unittest.SkipTest('the unpatched base has no chardev '
                                    '"zpipe"')
        self.path = Path(tempfile.mkdtemp(prefix='hotzp-', dir='/tmp'))
        self.addCleanup(shutil.rmtree, self.path, ignore_errors=True)

    def make(self, edit=lambda text: text):
        return self.domain(
            'zpipe', SCRIPT, files={'stream': stream_program().read_bytes()},
            edit=lambda text: edit(text.replace('@ZPIPE@',
                                                f'{self.path}/data')))

    def test_life(self):
        """Both ways, exact; what libvirt's users can ask; the end."""
        domain = self.make()
        domain.start()
        # before the guest reads: without a peer that is the end of its file
        peer = Peer(self.path / 'data', send=(SIZE, 3), receive=(SIZE, 4))
        self.addCleanup(peer.close)
        results = domain.wait(lambda r: 'exact' in r, 'exact')
        self.assertEqual(results['exact'], '0')
        said = self.daemon.virsh('qemu-monitor-command', domain.name, '--hmp',
                                 'info zpipe')
        self.assertIn('data', said)
        info, = self.daemon.qmp(domain.name, 'query-zpipe')
        self.assertEqual(info['state'], 'connected')
        self.assertEqual(peer.finish(60)['received'], SIZE)
        self.daemon.virsh('destroy', domain.name)
        self.assertEqual(domain.state(), 'shut off')

    def test_bad_value(self):
        domain = self.make(lambda text: text.replace(
            'server=on', 'server=on,ring-size=100000'))
        with self.assertRaises(VirshError) as caught:
            domain.start()
        self.assertIn('ring-size', str(caught.exception))
        self.assertEqual(domain.state(), 'shut off')


if __name__ == '__main__':
    unittest.main()
