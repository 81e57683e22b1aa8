# SPDX-License-Identifier: GPL-2.0-or-later
"""Write initramfs archives (cpio, format newc) without being root.

A device node is only a header in the archive, so nothing here needs mknod.
"""
import gzip
import os
import shutil
import stat
import subprocess
from pathlib import Path

from hotpath_paths import SetupError

HERE = Path(__file__).resolve().parent

# What the guest tests use; dependencies are found from the modules.
DEFAULT_MODULES = ('virtio_pci', 'virtio_blk', 'virtio_net',
                   'virtio_console', 'virtio_rng', 'e1000e')


class Cpio:
    """A newc archive under construction."""

    def __init__(self):
        self._parts = []
        self._offset = 0
        self._inode = 0
        self._dirs = set()

    def _put(self, data):
        padding = -(self._offset + len(data)) % 4
        self._parts.append(data + b'\0' * padding)
        self._offset += len(data) + padding

    def _entry(self, name, mode, data=b'', device=(0, 0)):
        encoded = name.encode() + b'\0'
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0,
                  device[0], device[1], len(encoded), 0)
        header = b'070701' + b''.join(b'%08X' % f for f in fields)
        self._put(header + encoded)
        self._put(data)

    def folder(self, path):
        """Add a directory and those above it, once."""
        if path in ('', '.') or path in self._dirs:
            return
        self.folder(os.path.dirname(path))
        self._dirs.add(path)
        self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path, data, mode=0o644):
        """Add a regular file."""
        self.folder(os.path.dirname(path))
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path, target):
        """Add a symbolic link."""
        self.folder(os.path.dirname(path))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def char_device(self, path, major, minor):
        """Add a character device node."""
        self.folder(os.path.dirname(path))
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def bytes(self):
        """Return the whole archive; nothing can be added afterwards."""
        self._entry('TRAILER!!!', 0)
        return b''.join(self._parts)


def find_busybox():
    """Return the path of a statically linked busybox."""
    path = os.environ.get('BUSYBOX') or shutil.which(
        'busybox', path=os.environ.get('PATH', '') + ':/bin:/usr/bin')
    if not path:
        raise SetupError('busybox not found: install busybox-static, or name '
                         'a static busybox in BUSYBOX')
    # A program that asks for an interpreter (PT_INTERP) is not static.
    if b'/ld-linux' in Path(path).read_bytes()[:4096]:
        raise SetupError(f'{path} is dynamically linked: install '
                         'busybox-static, or name a static one in BUSYBOX')
    return Path(path)


def add_busybox(archive):
    """Add busybox and a link for each of its applets to /bin."""
    busybox = find_busybox()
    applets = subprocess.run([str(busybox), '--list'], check=True, text=True,
                             stdout=subprocess.PIPE).stdout.split()
    archive.file('bin/busybox', busybox.read_bytes(), 0o755)
    for applet in applets:
        if applet != 'busybox':
            archive.link(f'bin/{applet}', 'busybox')


def add_modules(archive, kernel, names):
    """Add modules and the file that tells the order of loading."""
    order = kernel.load_order(names)
    for name, data in order:
        archive.file(f'modules/{name}.ko', data)
    archive.file('modules/order', ''.join(f'{n}\n' for n, _ in order).encode())


def base_archive(kernel, modules=DEFAULT_MODULES, init='init'):
    """Return the compressed archive that every Linux guest starts from."""
    archive = Cpio()
    for folder in ('dev', 'proc', 'sys', 'tmp'):
        archive.folder(folder)
    archive.char_device('dev/console', 5, 1)
    add_busybox(archive)
    add_modules(archive, kernel, modules)
    archive.file('init', (HERE / init).read_bytes(), 0o755)
    return gzip.compress(archive.bytes(), 1)


def extra_archive(files):
    """Return a compressed archive of {path: bytes}, to append to another.

    The kernel unpacks archives that follow each other into the same root.
    """
    archive = Cpio()
    for path, data in files.items():
        archive.file(path, data, 0o755)
    return gzip.compress(archive.bytes(), 1)
