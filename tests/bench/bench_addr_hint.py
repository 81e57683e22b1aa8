# SPDX-License-Identifier: GPL-2.0-or-later
"""Device access by address hint: what one access costs in user space."""
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from callgrind import BenchError, callgrind, instructions, profiles
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from bare_metal import build_image                          # noqa: E402
from hotpath_paths import use_qemu_python                   # noqa: E402

SERIES = ROOT / 'build' / 'out'
BASE = ROOT / 'build' / 'base' / 'out'
REPEATS = 5

# registers of dispatch-testdev, docs/specs/dispatch-testdev.rst
SEED, COUNT, CHANGE, REGIONS, FLAGS, START, STATUS = range(0x04, 0x20, 4)
ELAPSED_NS = 0x44
MEASURE, DONE = 2, 2
VCPU, WRITE, PORTS, LOCKLESS, OWNED, ZIPF = 1, 2, 4, 8, 16, 32

# (label, regions, flags)
CASES = (
    ('1 region, read', 1, 0),
    ('8 regions, read', 8, 0),
    ('8 regions of a device, read', 8, OWNED),
    ('8 regions of a device, write', 8, OWNED | WRITE),
    ('8 port ranges, read', 8, PORTS),
    ('64 regions, read', 64, 0),
    ('256 regions, read', 256, 0),
    ('512 regions, read', 512, 0),
    ('512 regions, Zipf, read', 512, ZIPF),
    ('4000 regions, Zipf, read', 4000, ZIPF),
    ('4000 regions, read', 4000, 0),
    ('8 lockless regions, read', 8, LOCKLESS),
)
PAYLOAD_EXIT = 0x10 << 1 | 1     # ports.S, through isa-debug-exit
DEV = 'dispatch-testdev,addr=04.0'
BARS = ((0x10, 0xe0000000), (0x14, 0xe2000000), (0x18, 0xc000))


class TestDevice:
    """A QEMU with a dispatch-testdev, driven by the qtest protocol."""

    def __init__(self, hints, wrapper=()):
        use_qemu_python()
        from qemu.machine.qtest import QEMUQtestMachine
        self.vm = QEMUQtestMachine(str(SERIES / 'qemu-system-x86_64'),
                                   wrapper=wrapper, base_temp_dir='/tmp',
                                   qmp_timer=120)
        self.vm.set_machine(f'pc,dispatch-hints={hints}')
        self.vm.add_args('-nodefaults', '-device', DEV)

    def __enter__(self):
        self.vm.launch()
        for offset, address in BARS:
            self.config(offset, address)
        self.config(0x04, 7)
        return self

    def __exit__(self, *exc):
        self.vm.shutdown(timeout=60)    # valgrind is slow

    def config(self, offset, value):
        self.vm.qtest(f'outl 0xcf8 {0x80000000 | 4 << 11 | offset:#x}')
        self.vm.qtest(f'outl 0xcfc {value:#x}')

    def write(self, register, value):
        self.vm.qtest(f'writel {BARS[0][1] + register:#x} {value:#x}')

    def read(self, register):
        return int(self.vm.qtest(
            f'readl {BARS[0][1] + register:#x}').split()[1], 16)

    def measure(self, regions, flags, count, poll):
        """Make the accesses; return their processor time in ns each."""
        for register, value in ((SEED, 1), (COUNT, count),
                                (REGIONS, regions), (FLAGS, flags),
                                (START, MEASURE)):
            self.write(register, value)
        while self.read(STATUS) != DONE:
            poll()
        return (self.read(ELAPSED_NS)
                + (self.read(ELAPSED_NS + 4) << 32)) / count


def count_in_process(say):
    """Return {(case, way): instructions per access}, by callgrind."""
    from time import sleep
    count, found = 20000, {}
    for hints in ('off', 'on'):
        with tempfile.TemporaryDirectory() as folder:
            wrapper = callgrind(folder, '--toggle-collect=measured_loop',
                                '--dump-after=measured_loop')
            order = []
            with TestDevice(hints, wrapper) as dev:
                for label, regions, flags in CASES:
                    say(f'instructions, hints {hints}: {label}')
                    for _ in range(REPEATS):
                        for way, extra in (('plain', 0), (hints, VCPU)):
                            dev.measure(regions, flags | extra, count,
                                        lambda: sleep(0.2))
                            order.append((label, way))
            counts = [instructions(p) for p in profiles(folder)]
            counts = [n for n in counts if n]
            if len(counts) < len(order):
                raise BenchError(f'callgrind wrote {len(counts)} profiles, '
                                 f'{len(order)} were expected')
            for key, total in zip(order, counts):
                found.setdefault(key, []).append(total / count)
    return found


def time_in_process(say):
    """Return {(case, way): ns per access}, ways in turn."""
    from time import sleep
    count, found = 500000, {}
    with TestDevice('on') as dev:
        for label, regions, flags in CASES:
            say(f'processor time: {label}')
            for _ in range(REPEATS):
                for way, extra in (('plain', 0), ('on', VCPU)):
                    found.setdefault((label, way), []).append(
                        dev.measure(regions, flags | extra, count,
                                    lambda: sleep(0.02)))
    return found


def guest_instructions(build, machine, count):
    """Return the instructions of a whole run of the payload 'ports'."""
    image = build_image('ports', {'COUNT': count})
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            callgrind(folder) + [
                str(build / 'qemu-system-x86_64'), '-machine', machine,
                '-accel', 'tcg,thread=single', '-nodefaults', '-display',
                'none', '-cpu', 'qemu64', '-m', '64M', '-bios', str(image),
                '-icount', 'shift=0,sleep=off', '-serial', 'null',
                '-device', 'pci-testdev,addr=4.0', '-device',
                'isa-debug-exit,iobase=0xf4,iosize=1'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=300)
        if done.returncode != PAYLOAD_EXIT:
            raise BenchError(f'{build}: the payload did not reach its end '
                             f'(exit code {done.returncode})')
        return sum(instructions(p) for p in Path(folder).iterdir())


def count_guest_ports(say):
    """Return {way: instructions per port read of a TCG guest}."""
    low, high = 2000, 22000
    ways = (('base', BASE, 'pc'), ('off', SERIES, 'pc'),
            ('on', SERIES, 'pc,dispatch-hints=on'))
    found = {}
    for turn in range(REPEATS):
        for way, build, machine in ways:
            say(f'guest port reads, {way}, {turn + 1} of {REPEATS}')
            costs = [guest_instructions(build, machine, n)
                     for n in (low, high)]
            found.setdefault(way, []).append(
                (costs[1] - costs[0]) / (high - low))
    return found


def rows_of(found, unit, ways):
    rows = []
    for label, _, _ in CASES:
        values = {way: spread(found[label, way]) for way in ways}
        rows.append({'case': label, 'unit': unit, 'values': values,
                     'ratio': values['on']['median']
                     / values['plain']['median']})
    return rows


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    for build in (SERIES, BASE):
        if not os.access(build / 'qemu-system-x86_64', os.X_OK):
            raise BenchError(f'{build} holds no QEMU: make build build-base')
    counted = count_in_process(say)
    timed = time_in_process(say)
    ports = count_guest_ports(say)
    medians = {way: statistics.median(v) for way, v in ports.items()}
    return {
        'name': 'addr-hint',
        'title': 'Device access by address hint',
        'tables': [
            {'title': 'Instructions of user space per access of a vCPU',
             'text': 'The whole path that a KVM exit for MMIO or a port takes '
                     'in QEMU, big lock included, in a loop inside QEMU '
                     '(callgrind).  plain: address_space_rw(); off: the '
                     'hooked path with dispatch-hints=off; on: with '
                     'dispatch-hints=on.  The ratio is on / plain.',
             'ways': ['plain', 'off', 'on'],
             'rows': rows_of(counted, 'instructions',
                             ('plain', 'off', 'on'))},
            {'title': 'Processor time per access of a vCPU',
             'text': 'The same loop, not under callgrind, ways in turn.',
             'ways': ['plain', 'on'],
             'rows': rows_of(timed, 'ns', ('plain', 'on'))},
            {'title': 'Instructions per port read of a bare-metal TCG guest',
             'text': 'Whole process, difference of two lengths; base is the '
                     'unpatched QEMU.  The ratio is on / base.',
             'ways': ['base', 'off', 'on'],
             'rows': [{'case': 'pci-testdev, 1 byte', 'unit': 'instructions',
                       'values': {w: spread(v) for w, v in ports.items()},
                       'ratio': medians['on'] / medians['base']}]},
        ],
    }
