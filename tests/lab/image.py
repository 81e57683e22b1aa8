# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the emulated host: kernel, modules, our QEMU and what it needs.

Everything goes into one uncompressed initramfs, because unpacking a compressed
one would take the emulated host longer than all the rest of its start.
"""
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'guest'))

from guest_kernel import prepare_kernel                     # noqa: E402
from hotpath_paths import (BUILD, FIRMWARE, SetupError,     # noqa: E402
                           qemu_binary)
from initramfs import (Cpio, DEFAULT_MODULES, add_busybox,  # noqa: E402
                       add_modules, base_archive, find_busybox)

LAB_DIR = BUILD / 'lab'

# loaded at the start of the emulated host, in this order: the IOMMU first, so
# that the devices' drivers find it
HOST_MODULES = ('virtio_pci', 'virtio_iommu', 'virtio_console', 'virtio_net',
                'virtio_blk', 'kvm_amd', 'vfio_iommu_type1', 'vfio_pci', 'igb')
# some distributions leave it out; the other IOMMUs' drivers are built in
OPTIONAL_MODULES = ('virtio_iommu',)
# there for a test that wants them: load NAME
SPARE_MODULES = ('e1000e', 'nvme')
GUEST_MODULES = DEFAULT_MODULES + ('igbvf', 'nvme')

PROGRAMS = ('qemu-system-x86_64', 'qemu-img', 'qemu-irq-affinity-helper')
FIRMWARE_FILES = ('bios-256k.bin', 'linuxboot_dma.bin', 'kvmvapic.bin')


class HostImage:
    """The files that an emulated host is started from."""

    def __init__(self, kernel, initrd):
        self.kernel = kernel
        self.initrd = initrd


def needed_libraries(program, folders=()):
    """Return {name in the emulated host: path here} of shared libraries.

    @folders: where to look for them first
    """
    env = dict(os.environ)
    if folders:
        env['LD_LIBRARY_PATH'] = ':'.join(folders)
    done = subprocess.run(['ldd', str(program)], text=True, check=True,
                          stdout=subprocess.PIPE, env=env)
    found = {}
    for line in done.stdout.splitlines():
        match = re.match(r'\s*(\S+) => (/\S+)|\s*(/\S+)', line)
        if match and match.group(2):
            found[f'lib/{match.group(1)}'] = Path(match.group(2))
        elif match:
            # the loader: programs name it by its path
            found[match.group(3).lstrip('/')] = Path(match.group(3))
        elif 'not found' in line:
            raise SetupError(f'{program} needs {line.split()[0]}, which is '
                             'not there')
    return found


def stripped(program):
    """Return a program's bytes without debug information."""
    LAB_DIR.mkdir(parents=True, exist_ok=True)
    target = LAB_DIR / f'.{program.name}.{os.getpid()}'
    try:
        subprocess.run(['strip', '-o', str(target), str(program)], check=True)
        return target.read_bytes()
    finally:
        target.unlink(missing_ok=True)


def firmware_file(name):
    for folder in FIRMWARE:
        path = Path(folder, name)
        if path.is_file():
            return path
    raise SetupError(f'{name} is in none of {", ".join(FIRMWARE)}: install '
                     'seabios and qemu-system-data')


def add_programs(archive, programs):
    libraries = {}
    for program in programs:
        archive.file(f'bin/{program.name}', stripped(program), 0o755)
        libraries.update(needed_libraries(program))
    for name, path in sorted(libraries.items()):
        archive.file(name, path.read_bytes(), 0o755)


def host_archive(kernel, programs):
    """Return the initramfs of the emulated host."""
    archive = Cpio()
    for folder in ('dev', 'proc', 'sys', 'tmp', 'run', 'srv'):
        archive.folder(folder)
    archive.char_device('dev/console', 5, 1)
    add_busybox(archive)
    add_modules(archive, kernel, [m for m in HOST_MODULES if kernel.has(m)
                                  or m not in OPTIONAL_MODULES])
    for name, data in kernel.load_order(SPARE_MODULES):
        archive.file(f'modules/spare/{name}.ko', data)
    archive.file('modules/spare/order', ''.join(
        f'{n}\n' for n, _ in kernel.load_order(SPARE_MODULES)).encode())
    add_programs(archive, programs)
    for name in FIRMWARE_FILES:
        archive.file(f'fw/{name}', firmware_file(name).read_bytes())
    archive.file('fw/vmlinuz', Path(kernel.image).read_bytes())
    archive.file('fw/guest.cpio.gz', base_archive(kernel, GUEST_MODULES))
    for name in ('host-init', 'host-lib'):
        archive.file({'host-init': 'init', 'host-lib': 'lab.sh'}[name],
                     (HERE / name).read_bytes(), 0o755)
    return archive.bytes()


def stamp_of(kernel, programs):
    """Return a digest of all that the image is made from."""
    digest = hashlib.sha256(f'{kernel.version} {HOST_MODULES} {SPARE_MODULES} '
                            f'{GUEST_MODULES}'.encode())
    for program in programs:
        status = program.stat()
        digest.update(f'{program} {status.st_size} {status.st_mtime_ns}'
                      .encode())
    for path in (find_busybox(), HERE / 'image.py', HERE / 'host-init',
                 HERE / 'host-lib', HERE.parent / 'guest' / 'init',
                 HERE.parent / 'guest' / 'initramfs.py'):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare(say=print):
    """Build the image unless it is up to date; return a HostImage."""
    if not shutil.which('strip') or not shutil.which('ldd'):
        raise SetupError('strip or ldd not found: install binutils')
    kernel = prepare_kernel(say=say)
    programs = [qemu_binary(name) for name in PROGRAMS]
    LAB_DIR.mkdir(parents=True, exist_ok=True)
    target, mark = LAB_DIR / 'host.cpio', LAB_DIR / 'host.stamp'
    stamp = stamp_of(kernel, programs)
    if not target.is_file() or not mark.is_file() \
            or mark.read_text() != stamp:
        new = target.with_name(f'.{target.name}.{os.getpid()}')
        new.write_bytes(host_archive(kernel, programs))
        new.rename(target)
        mark.write_text(stamp)
        say(f'lab: wrote {target}, {target.stat().st_size >> 20} MiB')
    return HostImage(kernel, target)
