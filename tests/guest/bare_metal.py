# SPDX-License-Identifier: GPL-2.0-or-later
"""Bare-metal guests: a flat 64 KiB image of ours instead of a BIOS.

    state, why = kvm_probe()
    result = run_bare('io', accel='tcg', defines={'COUNT': 1000},
                      devices=('edu,addr=5.0',))
    result['checksum']

Payloads are in tests/guest/bare/, one .S or .c file each; they write lines
"KEY HEX" to the debug console, the last with the key 'end'.
"""
import functools
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from guest import GuestFailure, console_tail
from hotpath_paths import (BUILD, GUEST_DIR, ROOT, SetupError, qemu_binary,
                           report_dir, use_qemu_python)

SOURCES = Path(__file__).resolve().parent / 'bare'
IMAGE_SIZE = 64 * 1024
# of the project's own headers for guests
INCLUDES = ('src/include/hw/misc', 'src/contrib/addr-hint')
C_FLAGS = ('-m32', '-march=i686', '-O2', '-Wall', '-ffreestanding',
           '-fno-pic', '-fno-stack-protector', '-mgeneral-regs-only',
           '-fno-asynchronous-unwind-tables', '-fcf-protection=none')


def build_image(payload, defines=None):
    """Compile or assemble a payload, and link it; return the image's path."""
    suffix = ''.join(f'-{k}{v}' for k, v in sorted((defines or {}).items()))
    target = GUEST_DIR / 'bare' / f'{payload}{suffix}.bin'
    target.parent.mkdir(parents=True, exist_ok=True)
    symbols = [x for k, v in (defines or {}).items()
               for x in ('--defsym', f'{k}={v}')]
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
        source = SOURCES / f'{payload}.S'
        if (SOURCES / f'{payload}.c').is_file():
            _compile(payload, defines or {}, tmp)
            source, symbols = SOURCES / 'c.S', []
        commands = (['as', '--32', '-I', str(SOURCES), '-I', tmp, *symbols,
                     '-o', f'{tmp}/x.o', str(source)],
                    ['ld', '-m', 'elf_i386', '-Ttext=0xf0000', '-o',
                     f'{tmp}/x.bin', '--oformat=binary', f'{tmp}/x.o'])
        for command in commands:
            _run_tool(command)
        if os.path.getsize(f'{tmp}/x.bin') != IMAGE_SIZE:
            raise SetupError(f'{payload}.S does not give an image of 64 KiB')
        os.replace(f'{tmp}/x.bin', target)
    return target


def _compile(payload, defines, tmp):
    """Make payload.bin, which c.S includes."""
    _run_tool(['gcc', *C_FLAGS, '-I', str(SOURCES),
               *(x for folder in INCLUDES for x in ('-I', str(ROOT / folder))),
               *(f'-D{k}={v}' for k, v in sorted(defines.items())), '-c', '-o',
               f'{tmp}/c.o', str(SOURCES / f'{payload}.c')])
    _run_tool(['ld', '-m', 'elf_i386', '-T', str(SOURCES / 'c.ld'), '-o',
               f'{tmp}/payload.bin', f'{tmp}/c.o'])


def _run_tool(command):
    try:
        done = subprocess.run(command, text=True, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise SetupError(f'{command[0]} not found: install binutils') from None
    if done.returncode:
        raise SetupError(f'{command[0]} failed: {done.stderr.strip()}')


class BareGuest:
    """A running payload; use as a context manager."""

    def __init__(self, name, image, accel='tcg', machine='q35', smp=1,
                 devices=(), args=(), timeout=60, qemu=None):
        self.name, self.timeout = name, timeout
        self.folder = report_dir('guest', name)
        self.text, self.results = '', {}
        self._image, self._machine_type = image, machine
        self._accel, self._smp = accel, smp
        self._devices, self._extra = devices, args
        self._qemu = qemu or qemu_binary()
        self._tmp = self._conn = self._listener = self.vm = None

    def _make(self):
        use_qemu_python()
        from qemu.machine import QEMUMachine    # found only from here on
        vm = QEMUMachine(str(self._qemu), name='qemu', base_temp_dir='/tmp',
                         log_dir=str(self.folder))
        machine = self._machine_type
        vm.set_machine(machine)
        vm.add_args('-nodefaults', '-no-reboot', '-accel', self._accel,
                    '-cpu', 'qemu64', '-smp', str(self._smp), '-m', '64M',
                    '-bios', str(self._image), '-chardev',
                    f'socket,id=out,path={self._tmp}/out', '-device',
                    'isa-debugcon,iobase=0xe9,chardev=out')
        for device in self._devices:
            vm.add_args('-device', device)
        vm.add_args(*self._extra)
        return vm

    def __enter__(self):
        self._tmp = tempfile.mkdtemp(prefix='hotbare-', dir='/tmp')
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f'{self._tmp}/out')
        self._listener.listen(1)
        self._listener.settimeout(20)
        try:
            self.vm = self._make()
            self.vm.launch()
            self._conn = self._listener.accept()[0]
        except Exception as err:
            self.__exit__()
            raise GuestFailure(
                f'payload {self.name} did not start: '
                f'{err.__class__.__name__}\n'
                f'{console_tail(self.folder / "qemu.log", 5)}') from None
        return self

    def __exit__(self, *exc):
        if self.vm:
            try:
                self.vm.shutdown(hard=True)
            except Exception:       # it is gone in any case
                pass
        for sock in (self._conn, self._listener):
            if sock:
                sock.close()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def wait_end(self, key='end', at_least=0):
        """Read the payload's output until a line with a key and a value."""
        deadline = time.monotonic() + self.timeout
        while self.results.get(key, -1) < at_least:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._conn], [], [], left)[0]
            data = self._conn.recv(65536) if ready else b''
            if not data:
                self._fail(key, 'QEMU ended' if ready else
                           f'{self.timeout} s have passed')
            self.text += data.decode('latin-1')
            self._parse()
        return self.results

    def _parse(self):
        for line in self.text.split('\n')[:-1]:
            words = line.split()
            if len(words) == 2:
                self.results[words[0]] = int(words[1], 16)

    def _fail(self, key, why):
        log = self.folder / 'debugcon.log'
        log.write_text(self.text)
        raise GuestFailure(f'payload {self.name}: no line "{key}", {why}; its '
                           f'output:\n{console_tail(log)}\n  QEMU said:\n'
                           f'{console_tail(self.folder / "qemu.log", 5)}')


def run_bare(payload, name=None, defines=None, at_end=None, **options):
    """Run a payload to its end; return its results.

    @at_end: called with the BareGuest when it has ended, QEMU still there
    """
    image = build_image(payload, defines)
    with BareGuest(name or f'bare-{payload}', image, **options) as guest:
        results = guest.wait_end()
        if at_end:
            at_end(guest)
        return results


@functools.lru_cache(maxsize=None)
def kvm_probe():
    """Return (state, reason): can KVM be used here?

    'absent'  there is no /dev/kvm that we may open
    'works'   a bare-metal payload runs (a stock kernel may not)
    'cannot'  it is there but does not run even that
    """
    if not os.path.exists('/dev/kvm'):
        return 'absent', '/dev/kvm does not exist'
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return 'absent', '/dev/kvm may not be opened by this user'
    problem = _probe_problem(qemu_binary())
    if problem and _base_runs_probe():
        # the series' fault, not the machine's: let the tests show it
        return 'works', f'on the unpatched base only: {problem}'
    if problem:
        return 'cannot', f'the probe payload does not run: {problem}'
    return 'works', 'a bare-metal payload runs under it'


def _probe_problem(qemu):
    """Return why the probe does not run under KVM, or None."""
    try:
        with BareGuest('kvm-probe', build_image('probe'), accel='kvm',
                       timeout=5, qemu=qemu) as guest:
            guest.wait_end('probe')
    except GuestFailure as err:
        said = [x.strip() for x in str(err).splitlines() if x.strip()]
        return said[-1]
    return None


def _base_runs_probe():
    base = BUILD / 'base' / 'out' / 'qemu-system-x86_64'
    return (os.access(base, os.X_OK) and base != qemu_binary()
            and not _probe_problem(base))
