# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-blk: what the guest writes is what the host finds, and back."""
import hashlib
import random
import unittest

from guest import run_guest
from hotpath_paths import report_dir

MIB = 1024 * 1024
SIZE = 16 * MIB

SCRIPT = f'''
wait_for /dev/vda && wait_for /dev/vdb || exit 1
result read $(sha256sum </dev/vdb)
yes 'sixteen bytes..' | dd of=/dev/vda bs=1M count={SIZE // MIB} \\
    iflag=fullblock oflag=direct || exit 2
sync
echo 3 >/proc/sys/vm/drop_caches
result written $(sha256sum </dev/vda)
'''


def drive(name, path):
    return ('-blockdev', f'driver=file,node-name={name},filename={path}',
            '-device', f'virtio-blk-pci,drive={name}')


class Block(unittest.TestCase):

    def test_write_and_read_back(self):
        folder = report_dir('guest', 'block')
        written, given = folder / 'written.raw', folder / 'given.raw'
        given.write_bytes(random.Random(1).randbytes(SIZE))
        written.write_bytes(b'\0' * SIZE)
        result = run_guest('block', SCRIPT, args=drive('out', written)
                           + drive('in', given))
        wanted = hashlib.sha256(b'sixteen bytes..\n' * (SIZE // 16)).hexdigest()
        host = hashlib.sha256(written.read_bytes()).hexdigest()
        self.assertEqual(result['written'].split()[0], wanted)
        self.assertEqual(host, wanted)
        self.assertEqual(result['read'].split()[0],
                         hashlib.sha256(given.read_bytes()).hexdigest())
        for path in (written, given):
            path.unlink()


if __name__ == '__main__':
    unittest.main()
