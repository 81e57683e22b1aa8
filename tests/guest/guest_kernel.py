# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest kernel: fetched from the distribution, never installed.

Environment: KERNEL names a kernel image and KERNEL_MODULES the directory of
its modules (the one that holds 'kernel/'); with both set nothing is fetched.
"""
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from hotpath_paths import GUEST_DIR, ROOT, SetupError

RECORD = 'kernel.json'
META_PACKAGES = ('linux-image-amd64', 'linux-image-virtual')
UNPACK = {'.ko': None, '.gz': gzip.decompress, '.xz': lzma.decompress}


class KernelLacks(SetupError):
    """The kernel has not what a test needs; another one may have."""


class Kernel:
    """A kernel image and the directory of its modules."""

    def __init__(self, version, image, modules, source):
        self.version = version
        self.image = Path(image)
        self.modules = Path(modules)
        self.source = source
        self._paths = None
        self._builtin = None

    def _scan(self):
        if self._paths is not None:
            return
        self._paths = {}
        for path in self.modules.rglob('*.ko*'):
            self._paths[module_name(path.name)] = path
        listed = self.modules / 'modules.builtin'
        lines = listed.read_text().split() if listed.is_file() else []
        self._builtin = {module_name(os.path.basename(x)) for x in lines}

    def module(self, name):
        """Return the decompressed module, or None when it is built in."""
        self._scan()
        name = module_name(name)
        if name in self._paths:
            return read_module(self._paths[name])
        if name in self._builtin:
            return None
        raise KernelLacks(f'kernel {self.version} has no module {name}; '
                          'choose another with KERNEL and KERNEL_MODULES')

    def has(self, name):
        """Say whether a module is there or built in."""
        self._scan()
        return module_name(name) in self._paths.keys() | self._builtin

    def load_order(self, names):
        """Return [(name, bytes)] of modules and all they need, in order."""
        order = {}

        def visit(name):
            name = module_name(name)
            if name in order:
                return
            order[name] = data = self.module(name)
            if data is not None:
                for need in module_depends(data):
                    visit(need)
                # after all that it needs
                order[name] = order.pop(name)

        for name in names:
            visit(name)
        return [(n, d) for n, d in order.items() if d is not None]


def module_name(filename):
    """Return the name that the kernel gives the module of a file."""
    return re.sub(r'\.ko(\.\w+)?$', '', filename).replace('-', '_')


def read_module(path):
    """Return a module's bytes; newer distributions compress the files."""
    data = path.read_bytes()
    if path.suffix == '.zst':
        done = subprocess.run(['zstd', '-dcq'], input=data,
                              stdout=subprocess.PIPE, check=True)
        return done.stdout
    unpack = UNPACK[path.suffix]
    return unpack(data) if unpack else data


def module_depends(data):
    """Return the names in a module's 'depends' note (section .modinfo)."""
    found = re.search(rb'(?<![a-z_])depends=([^\0]*)\0', data)
    return [x for x in found.group(1).decode().split(',') if x] if found else []


def _apt(kind, *args, cwd=None):
    """Run apt-get or apt-cache, with the project's configuration if there."""
    private = ROOT / 'scripts' / 'apt-private'
    command = [str(private), kind] if private.is_file() else [f'apt-{kind}']
    done = subprocess.run(command + list(args), cwd=cwd, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
        raise SetupError(f'apt-{kind} {" ".join(args)} failed: {why}; check '
                         'the network, or set KERNEL and KERNEL_MODULES')
    return done.stdout


def _version_key(version):
    return [int(x) for x in re.findall(r'\d+', version)]


def package_depends(package, version, pattern):
    """Return the dependencies of a package that match a pattern."""
    text = _apt('cache', 'show', f'{package}={version}' if version else package)
    found = re.search(r'^Depends: (.*)$', text, re.M)
    names = re.split(r'[,|]\s*', found.group(1)) if found else []
    return [n.split()[0] for n in names if re.match(pattern, n)]


def find_packages():
    """Return the packages of the newest kernel that the sources offer."""
    for meta in META_PACKAGES:
        try:
            text = _apt('cache', 'show', meta)
        except SetupError as err:
            problem = err
            continue
        versions = re.findall(r'^Version: (\S+)$', text, re.M)
        newest = max(versions, key=_version_key)
        images = package_depends(meta, newest, r'linux-image-\d')
        if images:
            return images[:1] + package_depends(images[0], None, r'linux-modules-\d')
    raise SetupError(f'no kernel package found ({problem})')


def unpack_packages(packages, folder):
    for package in packages:
        _apt('get', 'download', package, cwd=folder)
    archives = sorted(folder.glob('*.deb'))
    for archive in archives:
        subprocess.run(['dpkg-deb', '-x', str(archive), str(folder / 'root')],
                       check=True)
        archive.unlink()


def _fetch(target, say):
    packages = find_packages()
    version = packages[0].replace('linux-image-', '', 1)
    place = target / 'kernels' / version
    if not place.is_dir():
        say(f'fetching {" ".join(packages)} (about 100 MB)')
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix='.new-', dir=place.parent))
        try:
            unpack_packages(packages, work)
            (work / 'root').rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return _described(place, version, ' '.join(packages))


def _described(place, version, source):
    images = sorted((place / 'boot').glob('vmlinuz-*'))
    folders = [p for p in (place / 'lib/modules', place / 'usr/lib/modules')
               if p.is_dir()]
    if not images or not folders:
        raise SetupError(f'{place} holds no kernel image with modules: '
                         'remove that directory and try again')
    return Kernel(version, images[0], folders[0] / version, source)


def _from_environment():
    image, modules = os.environ.get('KERNEL'), os.environ.get('KERNEL_MODULES')
    if not image and not modules:
        return None
    if not image or not os.access(image, os.R_OK):
        raise SetupError('KERNEL must name a readable kernel image (it is '
                         f'{image!r})')
    if not modules or not (Path(modules) / 'kernel').is_dir():
        raise SetupError("KERNEL_MODULES must name a directory that holds "
                         f"'kernel/' (it is {modules!r})")
    modules = Path(modules).resolve()
    return Kernel(modules.name, Path(image).resolve(), modules, 'environment')


def prepare_kernel(target=GUEST_DIR, say=print):
    """Return the guest kernel, fetching it when it is not there yet."""
    kernel = _from_environment() or load_kernel(target) or _fetch(target, say)
    target.mkdir(parents=True, exist_ok=True)
    record = target / (RECORD + '.new')
    record.write_text(json.dumps({
        'version': kernel.version, 'image': str(kernel.image),
        'modules': str(kernel.modules), 'source': kernel.source}, indent=1))
    record.rename(target / RECORD)
    return kernel


def load_kernel(target=GUEST_DIR):
    """Return the kernel that prepare_kernel() recorded, or None."""
    try:
        kernel = Kernel(**json.loads((target / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    if kernel.source == 'environment' and 'KERNEL' not in os.environ:
        return None
    there = kernel.image.is_file() and kernel.modules.is_dir()
    return kernel if there else None
