# SPDX-License-Identifier: GPL-2.0-or-later
"""LVM, the device mapper and the storage daemons for the emulated host.

They come on a disk of their own, as an archive that is unpacked there, so that
the image that all tests of the lab start from stays small.
"""
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from guest_kernel import (package_depends, prepare_kernel,
                          unpack_packages)
from hotpath_paths import SetupError, qemu_build
from image import LAB_DIR, needed_libraries, stripped
from initramfs import Cpio

DAEMONS = ('qemu-storage-agent', 'qemu-storage-controller', 'qemu-storage-ctl')
# libcrc32c does not name the module that it needs
MODULES = ('crc32c_generic', 'dm_mod', 'dm_thin_pool')
# names that LVM's one program goes by
LVM_COMMANDS = ('lvchange', 'lvcreate', 'lvextend', 'lvs', 'pvcreate',
                'vgchange', 'vgcreate', 'vgextend', 'vgs')
PACKAGES = ('lvm2', 'thin-provisioning-tools')
NEEDED = r'lib(devmapper|devmapper-event|aio|edit)\d'

# no udev, no dmeventd: LVM makes its device nodes itself
LVM_CONF = '''devices {
    dir = "/dev"
    scan = ["/dev"]
    global_filter = ["a|^/dev/vd[c-z]$|", "r|.*|"]
    obtain_device_list_from_udev = 0
    use_devicesfile = 0
}
activation {
    udev_sync = 0
    udev_rules = 0
    monitoring = 0
}
global {
    thin_check_executable = "/bin/thin_check"
}
backup {
    backup = 0
    archive = 0
}
'''


def _programs(say):
    """Return ([path of lvm, path of thin_check], a directory or None).

    They are the system's, or unpacked beneath the directory, not installed.
    """
    path = '/usr/sbin:/sbin:/usr/bin:/bin'
    found = [shutil.which(name, path=path) for name in ('lvm', 'thin_check')]
    if all(found):
        return [Path(name).resolve() for name in found], None
    place = LAB_DIR / 'lvm'
    if not place.is_dir():
        packages = set(PACKAGES)
        for package in PACKAGES:
            packages.update(package_depends(package, None, NEEDED))
        for package in sorted(packages - set(PACKAGES)):
            packages.update(package_depends(package, None, NEEDED))
        say(f'fetching {" ".join(sorted(packages))}')
        LAB_DIR.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix='.new-', dir=LAB_DIR))
        try:
            unpack_packages(sorted(packages), work)
            (work / 'root').rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    programs = []
    for name in ('lvm', 'thin_check'):
        paths = [p for p in place.rglob(name) if p.parent.name == 'sbin'
                 or p.parent.name == 'bin']
        if not paths:
            raise SetupError(f'{name} is not in the packages in {place}')
        programs.append(paths[0].resolve())
    return programs, place


def _archive(kernel, programs, daemons, place):
    archive = Cpio()
    folders = ([str(p.parent) for p in sorted(place.rglob('*.so.*'))]
               if place else [])
    libraries = {}
    for name, program in zip(('lvm', 'thin_check'), programs):
        archive.file(f'bin/{name}', stripped(program), 0o755)
        libraries.update(needed_libraries(program, folders))
    for name in LVM_COMMANDS:
        archive.link(f'bin/{name}', 'lvm')
    for program in daemons:
        archive.file(f'bin/{program.name}', stripped(program), 0o755)
        libraries.update(needed_libraries(program))
    for name, path in sorted(libraries.items()):
        archive.file(name, path.read_bytes(), 0o755)
    order = kernel.load_order(MODULES)
    for name, data in order:
        archive.file(f'modules/storage/{name}.ko', data)
    archive.file('modules/storage/order',
                 ''.join(f'{n}\n' for n, _ in order).encode())
    archive.file('etc/lvm/lvm.conf', LVM_CONF.encode())
    return archive.bytes()


def storage_disk(say=print):
    """Return the path of the disk with all of it; made when out of date."""
    kernel = prepare_kernel(say=say)
    daemons = [qemu_build() / 'contrib' / 'storage-growth' / name
               for name in DAEMONS]
    for path in daemons:
        if not path.is_file():
            raise SetupError(f'{path} was not built (package libglib2.0-dev)')
    programs, place = _programs(say)
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in [*programs, *daemons, kernel.image]:
        status = path.stat()
        digest.update(f'{path} {status.st_size} {status.st_mtime_ns}'.encode())
    target, mark = LAB_DIR / 'storage.cpio', LAB_DIR / 'storage.stamp'
    if not target.is_file() or not mark.is_file() \
            or mark.read_text() != digest.hexdigest():
        data = _archive(kernel, programs, daemons, place)
        target.write_bytes(data + bytes(-len(data) % 4096))
        mark.write_text(digest.hexdigest())
        say(f'lab: wrote {target}, {len(data) >> 20} MiB')
    return target


def make_disk(path, mib):
    """Make an empty disk."""
    subprocess.run(['truncate', '-s', f'{mib}M', str(path)], check=True)
