# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines with ondemand-mem-pci and no guest: the test is the guest.

It accesses ports and memory through qtest, whatever the accelerator; with KVM
the memory slots are real ones.
"""
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from guest import hotpath_counters
from hotpath_paths import (GUEST_DIR, SetupError, qemu_binary,
                           use_qemu_python)

HERE = Path(__file__).resolve().parent
WINDOW = 0xe0000000
WAIT_S = 60


def shim(name):
    """Compile NAME.c of this directory to be preloaded; return its path."""
    target = GUEST_DIR / f'{name}.so'
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ['gcc', '-O2', '-Wall', '-D_GNU_SOURCE', '-shared', '-fPIC', '-o',
         f'{target}.new', str(HERE / f'{name}.c'), '-ldl'], text=True,
        stderr=subprocess.PIPE)
    if done.returncode:
        raise SetupError(f'{name}.c does not compile: '
                         f'{done.stderr.strip()[-300:]}')
    Path(f'{target}.new').rename(target)
    return target


@contextmanager
def preloaded(name, **environment):
    """Programs that are started meanwhile get the shim, and the variables."""
    asan = os.environ.get('ASAN_OPTIONS', '')
    new = {'LD_PRELOAD': str(shim(name)), **environment,
           # its runtime wants to be the first library, which the shim is now
           'ASAN_OPTIONS': f'{asan}{":" if asan else ""}'
                           'verify_asan_link_order=0'}
    old = {key: os.environ.get(key) for key in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for key, value in old.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class WindowVm:
    """A machine that is driven through qtest; use as a context manager.

    @devices: number of windows, on slots 4 and up
    @window: properties of each
    """

    def __init__(self, name, policy, window, accel='qtest', devices=1,
                 args=(), memory='64M'):
        use_qemu_python()
        from qemu.machine import QEMUQtestMachine

        class Machine(QEMUQtestMachine):
            """With the accelerator that is to be used."""
            @property
            def _base_args(self):
                found = super()._base_args
                found[found.index('-accel') + 1] = accel
                return found

        self.vm = Machine(str(qemu_binary()), name=name, base_temp_dir='/tmp',
                          qmp_timer=60)
        self.vm.set_machine('pc')
        self.vm.add_args('-nodefaults', '-m', memory, '-object',
                         f'ondemand-policy,id=pol,{policy}', *args)
        if accel != 'qtest':
            self.vm.add_args('-S')      # the test alone uses the machine
        for n in range(devices):
            self.vm.add_args('-device', f'ondemand-mem-pci,id=mem{n},'
                             f'policy=pol,addr={4 + n:02x}.0,{window}')
        self.devices = devices

    def __enter__(self):
        self.vm.launch()
        return self

    @contextmanager
    def launched(self):
        """For one that somebody has launched already."""
        try:
            yield self
        finally:
            self.vm.shutdown(hard=True)

    def __exit__(self, *exc):
        if self.vm.is_running():
            self.vm.shutdown(hard=bool(exc[0]))

    def cmd(self, *args, **kwargs):
        """Execute a QMP command."""
        return self.vm.cmd(*args, **kwargs)

    def _qtest(self, line):
        words = self.vm.qtest(line).split()
        if words[0] != 'OK':
            raise AssertionError(f'qtest: {line}: {" ".join(words)}')
        return int(words[1], 16) if len(words) > 1 else None

    def read(self, addr, size='q'):
        """Read memory as a guest does; @size as qtest has it."""
        return self._qtest(f'read{size} {addr:#x}')

    def write(self, addr, value, size='q'):
        """Write memory as a guest does."""
        self._qtest(f'write{size} {addr:#x} {value:#x}')

    def read_bytes(self, addr, size):
        """Read much memory."""
        return bytes.fromhex(self.vm.qtest(f'read {addr:#x} {size:#x}')
                             .split()[1][2:])

    def _config(self, slot, reg, value):
        self._qtest(f'outl 0xcf8 {0x80000000 | slot << 11 | reg:#x}')
        self._qtest(f'outl 0xcfc {value:#x}')

    def set_bars(self, shown, step=0x100000):
        """Switch the windows' memory on, one after the other, or off."""
        for n in range(self.devices):
            if shown:
                self._config(4 + n, 0x10, WINDOW + n * step)
                self._config(4 + n, 0x14, 0)
            self._config(4 + n, 4, 2 if shown else 0)

    def counters(self):
        """Return the statistics, names without the mechanism's."""
        prefix = 'ondemand-map-'
        return {key[len(prefix):]: value for key, value
                in hotpath_counters(self.vm, 'vm').items()
                if key.startswith(prefix)}

    def states(self):
        """Return the states of all ranges, with the reasons of refusals."""
        return [' '.join([r['state'], r.get('refusal', '')]).strip()
                for info in self.cmd('query-ondemand-map')
                for r in info['ranges']]

    def wait(self, until, what):
        """Wait until a condition holds."""
        end = time.monotonic() + WAIT_S
        while not until():
            if time.monotonic() > end:
                raise AssertionError(f'it does not happen that {what}; '
                                     f'{self.counters()}')
            time.sleep(0.02)

    def wait_settled(self):
        """Wait until nothing is cold, or about to be mapped, any more."""
        self.wait(lambda: not {'cold', 'queued'} & set(self.states()),
                  'each range is mapped or refused')
