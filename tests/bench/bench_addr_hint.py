# SPDX-License-Identifier: GPL-2.0-or-later
"""Device access by address hint: what one access costs in user space."""
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from callgrind import (BenchError, callgrind, function_lines, instructions,
                       line_costs, profiles)
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from bare_metal import BareGuest, build_image, kvm_probe   # noqa: E402
from hotpath_paths import use_qemu_python                   # noqa: E402

SERIES = ROOT / 'build' / 'out'
BASE = ROOT / 'build' / 'base' / 'out'
REPEATS = 5

# registers of dispatch-testdev, docs/specs/dispatch-testdev.rst
SEED, COUNT, CHANGE, REGIONS, FLAGS, START, STATUS = range(0x04, 0x20, 4)
ELAPSED_NS = 0x44
MEASURE, DONE = 2, 2
VCPU, WRITE, PORTS, LOCKLESS, OWNED, ZIPF, WINDOW = 1, 2, 4, 8, 16, 32, 64

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
# by hints of addr-hint-pci
WINDOW_CASES = (
    ('1 region, read', 1, 0),
    ('8 regions of a device, read', 8, OWNED),
    ('8 regions of a device, write', 8, OWNED | WRITE),
    ('64 regions, read', 64, 0),
    ('512 regions, Zipf, read', 512, ZIPF),
    ('4000 regions, Zipf, read', 4000, ZIPF),
    ('8 lockless regions, read', 8, LOCKLESS),
)
# what a look-up is, in src/system
LOOK_UP = (('addr-hint.c.inc', ('addr_hint_set', 'addr_hint_in_way',
                                'addr_hint_known', 'addr_hint_find')),
           ('addr-hint-internal.h', ('addr_hint_mem_hash',
                                     'addr_hint_io_hash')))
LOOK_UP_CASES = (
    ('1 region', 1, 0), ('8 regions', 8, 0), ('8 port ranges', 8, PORTS),
    ('64 regions', 64, 0), ('256 regions', 256, 0), ('512 regions', 512, 0),
)
# slots as tests/guest/bare/hint.h wants them
GUEST_DEVICES = ('pci-testdev,addr=4.0', 'edu,addr=5.0',
                 'addr-hint-pci,addr=6.0,doorbells=8',
                 'virtio-rng-pci,disable-legacy=on,addr=7.0')
# (label, way of hintways.c, what a guest does without hints)
GUEST_CASES = (
    ('write in the window', 'write_window', 'write'),
    ('read in the window', 'read_window', 'read'),
    ('doorbell, answered by QEMU', 'doorbell', 'write'),
    ("doorbell, shares its target's eventfd", 'doorbell_shared', 'write'),
    ('(ioeventfd of a device itself)', 'eventfd', 'write'),
)
WAYS_IN_ORDER = ('round', 'nothing', 'write', 'write_window', 'doorbell',
                 'doorbell_shared', 'eventfd', 'read', 'read_window')
PAYLOAD_EXIT = 0x10 << 1 | 1     # ports.S, through isa-debug-exit
DEV = 'dispatch-testdev,addr=04.0'
BARS = ((0x10, 0xe0000000), (0x14, 0xe2000000), (0x18, 0xc000))
HINT_DEV = 'addr-hint-pci,addr=06.0,hints=4096'
HINT_BARS = ((0x10, 0xe5000000), (0x14, 0xe5001000), (0x18, 0xe6000000))
HINT_COMMAND, REGISTER = 0x2c, 1


class TestDevice:
    """A QEMU with a dispatch-testdev, driven by the qtest protocol."""

    def __init__(self, hints, wrapper=(), window=False):
        use_qemu_python()
        from qemu.machine.qtest import QEMUQtestMachine
        self.vm = QEMUQtestMachine(str(SERIES / 'qemu-system-x86_64'),
                                   wrapper=wrapper, base_temp_dir='/tmp',
                                   qmp_timer=120)
        self.vm.set_machine(f'pc,dispatch-hints={hints}')
        self.vm.add_args('-nodefaults', '-device', DEV)
        self.window = window
        if window:
            self.vm.add_args('-device', HINT_DEV)

    def __enter__(self):
        self.vm.launch()
        for offset, address in BARS:
            self.config(4, offset, address)
        self.config(4, 0x04, 7)
        if self.window:
            for offset, address in HINT_BARS:
                self.config(6, offset, address)
            self.config(6, 0x04, 2)
            # a first request, for nothing: it learns its address space
            self.vm.qtest(f'writel {HINT_BARS[0][1] + HINT_COMMAND:#x} '
                          f'{REGISTER}')
        return self

    def __exit__(self, *exc):
        self.vm.shutdown(timeout=60)    # valgrind is slow

    def config(self, slot, offset, value):
        self.vm.qtest(f'outl 0xcf8 {0x80000000 | slot << 11 | offset:#x}')
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


def window_in_process(say):
    """Return {(case, way): instructions per access}: at the address, and by a
    hint of addr-hint-pci with dispatch-hints off and on."""
    from time import sleep
    count, found = 20000, {}
    for hints in ('off', 'on'):
        with tempfile.TemporaryDirectory() as folder:
            wrapper = callgrind(folder, '--toggle-collect=measured_loop',
                                '--dump-after=measured_loop')
            order = []
            with TestDevice(hints, wrapper, window=True) as dev:
                for label, regions, flags in WINDOW_CASES:
                    say(f'instructions by hint, hints {hints}: {label}')
                    for _ in range(REPEATS):
                        for way, extra in (
                                ('plain', 0),
                                (f'window, {hints}', VCPU | WINDOW)):
                            dev.measure(regions, flags | extra, count,
                                        lambda: sleep(0.2))
                            order.append((label, way))
            counts = [n for n in map(instructions, profiles(folder)) if n]
            if len(counts) != len(order):
                raise BenchError(f'callgrind wrote {len(counts)} profiles, '
                                 f'{len(order)} were expected')
            for key, total in zip(order, counts):
                found.setdefault(key, []).append(total / count)
    return found


def count_look_up(say):
    """Return {case: instructions of the look-up per access that hits}.

    The compiler has inlined it, so they are those whose line in the source
    belongs to it.
    """
    from time import sleep
    lines = set().union(*(function_lines(ROOT / 'src' / 'system' / name, of)
                          for name, of in LOOK_UP))
    count, found = 100000, {}
    with tempfile.TemporaryDirectory() as folder:
        wrapper = callgrind(folder, '--toggle-collect=measured_loop',
                            '--dump-after=measured_loop')
        order = []
        with TestDevice('on', wrapper) as dev:
            for label, regions, flags in LOOK_UP_CASES:
                say(f'instructions of the look-up: {label}')
                for _ in range(REPEATS):
                    dev.measure(regions, flags | VCPU, count,
                                lambda: sleep(0.2))
                    order.append(label)
        parts = [p for p in profiles(folder) if instructions(p)]
        if len(parts) != len(order):
            raise BenchError(f'callgrind wrote {len(parts)} profiles, '
                             f'{len(order)} were expected')
        for label, part in zip(order, parts):
            total = sum(cost for place, cost in line_costs(part).items()
                        if place in lines)
            found.setdefault(label, []).append(total / count)
    return found


def thread_times_ns(pid):
    """Return {thread: processor time in ns} of a process."""
    found = {}
    for task in Path(f'/proc/{pid}/task').iterdir():
        try:
            found[int(task.name)] = int(
                (task / 'schedstat').read_text().split()[0])
        except OSError:         # a thread that ended
            pass
    return found


def times_in_guest(accel, count, say):
    """Return {(way, whose): ns per access}: of the vCPU's thread and of the
    whole process, for the ways of hintways.c, in turn."""
    say(f'bare-metal guest, {accel}')
    image = build_image('hintways', {'COUNT': count, 'ROUNDS': REPEATS})
    found = {}
    with BareGuest(f'bench-hintways-{accel}', image, accel=accel,
                   devices=GUEST_DEVICES, timeout=120) as guest:
        vcpu = guest.vm.cmd('query-cpus-fast')[0]['thread-id']
        pid, before = guest.vm.get_pid(), None
        for turn in range(REPEATS):
            for way in WAYS_IN_ORDER:
                guest.wait_end(way, at_least=turn)
                now = thread_times_ns(pid)
                if before and way != 'round':
                    for whose, spent in (
                            ('vCPU', now[vcpu] - before[vcpu]),
                            ('process', sum(now.values())
                             - sum(before.values()))):
                        found.setdefault((way, whose), []).append(
                            spent / count)
                before = now
        if guest.wait_end()['status']:
            raise BenchError('the guest got no hints')
    return found


def guest_rows(found):
    """Rows of hinted against plain, the loop itself taken off."""
    rows = []
    for label, way, plain in GUEST_CASES:
        for whose in ('vCPU', 'process'):
            values = {name: [a - b for a, b in zip(found[of, whose],
                                                   found['nothing', whose])]
                      for name, of in (('plain', plain), ('hinted', way))}
            rows.append({
                'case': f'{label}: {whose}', 'unit': 'ns',
                'values': {k: spread(v) for k, v in values.items()},
                'ratio': statistics.median(values['hinted'])
                / statistics.median(values['plain'])})
    return rows


def guest_tables(say):
    """Return the tables of bare-metal guests, under KVM where it works."""
    accels = [('TCG', 'tcg', 100000)]
    state, why = kvm_probe()
    if state == 'works':
        accels.append(('KVM', 'kvm', 5000))
    else:
        say(f'no figures under KVM: {why}')
    return [{'title': f'Processor time in a bare-metal guest under {name}',
             'text': 'plain: the access at the address of edu, '
                     'dispatch-hints=off.  vCPU: of its thread; process: of '
                     'all threads, with the writes that the main loop makes '
                     'for doorbells, which merges rings.  Ways in turn.',
             'ways': ['plain', 'hinted'],
             'rows': guest_rows(times_in_guest(accel, count, say))}
            for name, accel, count in accels]


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


def rows_of(found, unit, ways, cases=CASES):
    rows = []
    for label, _, _ in cases:
        values = {way: spread(found[label, way]) for way in ways}
        rows.append({'case': label, 'unit': unit, 'values': values,
                     'ratio': values[ways[-1]]['median']
                     / values[ways[0]]['median']})
    return rows


def look_up_rows(found):
    first = statistics.median(found[LOOK_UP_CASES[0][0]])
    return [{'case': label, 'unit': 'instructions',
             'values': {'look-up': spread(found[label])},
             'ratio': statistics.median(found[label]) / first}
            for label, _, _ in LOOK_UP_CASES]


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    for build in (SERIES, BASE):
        if not os.access(build / 'qemu-system-x86_64', os.X_OK):
            raise BenchError(f'{build} holds no QEMU: make build build-base')
    counted = count_in_process(say)
    looked_up = count_look_up(say)
    by_hint = window_in_process(say)
    timed = time_in_process(say)
    ports = count_guest_ports(say)
    in_guest = guest_tables(say)
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
            {'title': 'Instructions of the look-up in the table, on a hit',
             'text': 'From the address to the region, the offset in it and '
                     'the sizes that need no rule; part of the above.  The '
                     'ratio is to one region.',
             'ways': ['look-up'],
             'rows': look_up_rows(looked_up)},
            {'title': 'Instructions per access by a hint of addr-hint-pci',
             'text': 'As the first table, through the window as at KVM exits. '
                     ' plain: at the address.  The ratio is window, on / '
                     'plain.',
             'ways': ['plain', 'window, off', 'window, on'],
             'rows': rows_of(by_hint, 'instructions',
                             ('plain', 'window, off', 'window, on'),
                             WINDOW_CASES)},
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
            *in_guest,
        ],
    }
