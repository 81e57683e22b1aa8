# SPDX-License-Identifier: GPL-2.0-or-later
"""Run Linux guests, with a script inside and QMP outside.

    result = run_guest('boot', 'result cpus $(nproc)', smp=2)
    result['cpus']          # '2'

or, to act while the guest runs ('park NAME' in the script waits for us):

    with Guest('stats', script) as guest:
        guest.wait_parked('ready')
        guest.vm.cmd('query-stats', target='vm')
        guest.resume()
        result = guest.finish()

The guest writes its results to the second serial port; tests/guest/init tells
the protocol.  Logs are kept in build/report/guest/NAME/.
"""
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from guest_kernel import load_kernel
from hotpath_paths import (BUILD, GUEST_DIR, SetupError, qemu_binary,
                           qemu_build, report_dir, use_qemu_python)
from initramfs import extra_archive

TAIL_LINES = 30
SILENCE_S = 5           # then it is looked whether QEMU is still there
DEFAULT_TIMEOUT_S = 120


class GuestFailure(AssertionError):
    """A guest did not do what it should; carries the end of its console."""


class GuestResult:
    """What a guest reported: results by key, and where its logs are."""

    def __init__(self, name, lines, results, status, exitcode, folder,
                 elapsed_s):
        self.name = name
        self.lines = lines
        self.results = results
        self.status = status
        self.exitcode = exitcode
        self.folder = folder
        self.kernel_log = folder / 'console.log'
        self.elapsed_s = elapsed_s

    def __getitem__(self, key):
        if key not in self.results:
            raise GuestFailure(f'guest {self.name} gave no result "{key}" '
                               f'(it gave {sorted(self.results)}); see '
                               f'{self.kernel_log}')
        return self.results[key]


def guest_files():
    """Return (kernel, base initramfs), or say how to get them."""
    kernel = load_kernel()
    base = GUEST_DIR / 'base.cpio.gz'
    if not kernel or not base.is_file():
        raise SetupError('no guest kernel: run tests/guest/prepare')
    return kernel, base


def write_initrd(path, script, files=None):
    """Write the initramfs of a guest that runs a script; return its path."""
    data = guest_files()[1].read_bytes()
    extra = {**(files or {}), 'test.sh': script.encode() + b'\n'}
    Path(path).write_bytes(data + b'\0' * (-len(data) % 4)
                           + extra_archive(extra))
    return path


def console_tail(path, lines=TAIL_LINES):
    """Return the last lines of a log, for a report."""
    try:
        text = Path(path).read_text(errors='replace')
    except OSError:
        return '(no log)'
    return '\n'.join('    ' + x for x in text.splitlines()[-lines:])


def machine_has(prop, machine='q35', binary=None):
    """Tell if the QEMU under test knows a machine property."""
    done = subprocess.run([str(binary or qemu_binary()), '-M',
                           f'{machine},help'], text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    if done.returncode:
        raise SetupError(f'{binary or qemu_binary()} does not run: '
                         f'{done.stderr.strip()[-200:]}')
    return any(line.split('=')[0].strip() == prop
               for line in done.stdout.splitlines())


def is_base_build():
    """Tell if the build under test is the unpatched base."""
    return BUILD / 'base' in qemu_build().parents


def need_machine_property(prop):
    """Skip the calling test on the unpatched base; fail if else missing."""
    if is_base_build():
        raise unittest.SkipTest(f'the unpatched base has no property "{prop}"')
    if not machine_has(prop):
        raise GuestFailure(f'{qemu_binary()} has no machine property "{prop}"')


def hotpath_counters(vm, target):
    """Return {name: sum} of all statistics of the provider 'hotpath'."""
    from qemu.qmp import ExecuteError
    try:
        groups = vm.cmd('query-stats', target=target,
                        providers=[{'provider': 'hotpath'}])
    except ExecuteError:
        return {}           # a QEMU that does not know this provider
    sums = {}
    for group in groups:
        for stat in group['stats']:
            if isinstance(stat['value'], int):
                sums[stat['name']] = sums.get(stat['name'], 0) + stat['value']
    return sums


class GuestProtocol:
    """The lines of tests/guest/init, read from a connected socket.

    Mixin; its user sets name, timeout, _deadline (time.monotonic()) and _conn,
    and has _fail(why), which raises.
    """

    def __init__(self):
        self.lines, self.results, self.parked = [], {}, []
        self.status = None
        self._partial = b''

    def _line(self, line):
        self.lines.append(line)
        word, _, rest = line.partition(' ')
        if word == 'RESULT':
            key, _, value = rest.partition(' ')
            self.results[key] = value
        elif word == 'PARK':
            self.parked.append(rest)
        elif word == 'DONE':
            self.status = int(rest)

    def check_time(self, what):
        """Fail when the guest's time is over."""
        if time.monotonic() >= self._deadline:
            self._fail(f'no "{what}" within {self.timeout} s')

    def wait_for(self, until, what):
        """Read the guest's lines until a condition holds."""
        while not until():
            if self.status is not None:
                self._fail(f'its script ended with status {self.status} '
                           f'before "{what}"')
            left = self._deadline - time.monotonic()
            ready = left > 0 and select.select(
                [self._conn], [], [], min(left, SILENCE_S))[0]
            if not ready:
                self.check_time(what)
                self._silent(what)
                continue
            data = self._conn.recv(65536)
            if not data:
                self._fail(f'QEMU ended before "{what}"')
            *lines, self._partial = (self._partial + data).split(b'\n')
            for line in lines:
                self._line(line.decode(errors='replace').strip())

    def _silent(self, what):
        """Called when nothing was said for a while; may fail."""

    def wait_parked(self, name):
        """Wait until the guest's script is at 'park NAME'."""
        self.wait_for(lambda: name in self.parked, f'PARK {name}')

    def wait_result(self, key):
        """Wait until the guest gave a result, and return it."""
        self.wait_for(lambda: key in self.results, f'RESULT {key}')
        return self.results[key]

    def wait_done(self):
        """Wait until the script has ended, and let the guest power off."""
        self.wait_for(lambda: self.status is not None, 'DONE')
        self._conn.sendall(b'bye\n')

    def resume(self):
        """Let a parked guest go on."""
        self._conn.sendall(b'go\n')


class Guest(GuestProtocol):
    """A running Linux guest; use as a context manager."""

    def __init__(self, name, script, *, qemu=None, args=(), machine='q35',
                 accel='tcg', cpu=None, smp=1, mem='256M', devices=(),
                 append='', timeout=DEFAULT_TIMEOUT_S, files=None):
        """
        @name: of the report directory
        @script: shell text run in the guest, with the functions of init
        @machine: machine type with properties; sata=off is added for q35
        @devices: values for -device
        @files: {path: bytes} to add to the guest's root
        """
        self.name = name
        self.folder = report_dir('guest', name)
        self.timeout = timeout
        super().__init__()
        self.exitcode = self._conn = None
        self._start = self._deadline = None
        self._tmp = tempfile.mkdtemp(prefix='hotguest-', dir='/tmp')
        try:
            self.vm = self._machine(qemu or qemu_binary(), machine)
            self._describe(script, accel, cpu, smp, mem, devices, append,
                           files or {})
            self.vm.add_args(*args)
            self._listener = self._listen()
        except BaseException:
            shutil.rmtree(self._tmp, ignore_errors=True)
            raise

    def _listen(self):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.join(self._tmp, 'result'))
        listener.listen(1)
        return listener

    def _machine(self, qemu, machine):
        use_qemu_python()
        from qemu.machine import QEMUMachine    # found only from here on
        vm = QEMUMachine(str(qemu), name='qemu', base_temp_dir='/tmp',
                         log_dir=str(self.folder))
        if machine.split(',')[0] == 'q35' and 'sata=' not in machine:
            machine += ',sata=off'      # SeaBIOS waits long on empty ports
        vm.set_machine(machine)
        return vm

    def _describe(self, script, accel, cpu, smp, mem, devices, append, files):
        kernel = guest_files()[0]
        initrd = write_initrd(os.path.join(self._tmp, 'initrd'), script, files)
        self.vm.add_args(
            '-nodefaults', '-no-reboot', '-accel', accel, '-smp', str(smp),
            '-m', mem, '-kernel', str(kernel.image), '-initrd', initrd,
            '-append', f'console=ttyS0 panic=-1 {append}'.strip(),
            '-chardev', f'file,id=con,path={self.folder / "console.log"}',
            '-serial', 'chardev:con',
            '-chardev', f'socket,id=res,path={self._tmp}/result',
            '-serial', 'chardev:res')
        if cpu:
            self.vm.add_args('-cpu', cpu)
        for device in devices:
            self.vm.add_args('-device', device)

    def __enter__(self):
        self._start = time.monotonic()
        self._deadline = self._start + self.timeout
        try:
            self.vm.launch()
            self._listener.settimeout(20)
            self._conn = self._listener.accept()[0]
        except Exception as err:
            self.close()
            raise GuestFailure(
                f'guest {self.name} did not start: {err.__class__.__name__}\n'
                f'{console_tail(self.folder / "qemu.log", 5)}') from None
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """End the guest, whatever its state, and remove what was made."""
        try:
            self.vm.shutdown(hard=True)
        except Exception:       # it is gone in any case
            pass
        for sock in (self._conn, self._listener):
            if sock:
                sock.close()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def _fail(self, why):
        raise GuestFailure(
            f'guest {self.name}: {why}\n  last lines of its console '
            f'({self.folder}/console.log):\n'
            f'{console_tail(self.folder / "console.log")}\n  QEMU said:\n'
            f'{console_tail(self.folder / "qemu.log", 5)}')

    def counters(self, target):
        """Return {name: sum over all} of the provider 'hotpath'.

        @target: 'vm' or 'vcpu'
        """
        return hotpath_counters(self.vm, target)

    def finish(self):
        """Wait for the end of the script; power off; return the results."""
        self.wait_done()
        try:
            self.vm.wait(max(5, self._deadline - time.monotonic()))
        except Exception as err:
            self._fail(f'QEMU did not end properly: {err}')
        self.exitcode = self.vm.exitcode()
        if self.status or self.exitcode:
            self._fail(f'script status {self.status}, QEMU exit code '
                       f'{self.exitcode}, results {self.results}')
        return GuestResult(self.name, self.lines, self.results, self.status,
                           self.exitcode, self.folder,
                           time.monotonic() - self._start)


def run_guest(name, script, **options):
    """Run a guest to its end and return its GuestResult."""
    with Guest(name, script, **options) as guest:
        return guest.finish()


class OffOnTest:
    """Mixin: run one script with a mechanism off and on, compare results.

    A test class sets script, machine_off, machine_on, and options; compare()
    may be extended.  Results whose key starts with 'free_' may differ.
    """
    name = script = None
    machine_off = 'q35'
    machine_on = None
    needs_property = None
    options = {}

    def during(self, guest, state):
        """Called with state 'off' or 'on' while the guest is parked at
        'counts'; the script must hold that line."""

    def run_state(self, state):
        machine = self.machine_on if state == 'on' else self.machine_off
        with Guest(f'{self.name}-{state}', self.script, machine=machine,
                   **self.options) as guest:
            guest.wait_parked('counts')
            self.during(guest, state)
            guest.resume()
            return guest.finish()

    def test_same_results(self):
        need_machine_property(self.needs_property)
        off, on = self.run_state('off'), self.run_state('on')
        self.assertEqual(*({k: v for k, v in r.results.items()
                            if not k.startswith('free_')}
                           for r in (off, on)))
        self.assertGreater(len(off.results), 0)
