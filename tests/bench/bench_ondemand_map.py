# SPDX-License-Identifier: GPL-2.0-or-later
"""Threshold-mapped memory: CXL memory in a guest, trapped and mapped."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from callgrind import BenchError, callgrind, instructions
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from bare_metal import build_image                          # noqa: E402
from cxl_guest import CXL_SCRIPT, bare_options, cxl_options  # noqa: E402
from guest import Guest                                     # noqa: E402

SERIES = ROOT / 'build' / 'out'
BASE = ROOT / 'build' / 'base' / 'out'
REPEATS = 3
PAYLOAD_EXIT = 0x10 << 1 | 1     # cxl.S, through isa-debug-exit

# What traps is slow: less of it.  The RAM of the same guest, pass by pass in
# turn, is what a mapping can be at best.
MIB = 1024 * 1024
PASSES = 300
SCRIPT = CXL_SCRIPT + '''
instructions=%d
# past the threshold, and the commit that follows
report warm bandwidth 65536
sleep 1
report cxl %s
report code run $instructions
dax=ram
report ram_code run 30000000
park counts
'''


def measure_guest(way, build, policy, trapped):
    """Return the figures of one guest, by name."""
    script = SCRIPT % ((3000, f'bandwidth {MIB}') if trapped
                       else (30000000, f'against ram {PASSES}'))
    # the kernel's test of the timer fails where the host has little time
    with Guest(f'bench-cxl-{way}', script, timeout=300,
               qemu=build / 'qemu-system-x86_64',
               **cxl_options(policy, append='no_timer_check')) as guest:
        guest.wait_parked('counts')
        counts = guest.counters('vm')
        guest.resume()
        results = guest.finish().results
    mapped = counts.get('ondemand-map-maps', 0)
    if mapped == trapped:
        raise BenchError(f'{way}: {mapped} ranges were mapped')
    found = {'commit_us': counts.get('ondemand-map-commit-max-ns', 0) / 1000}
    figures = [float(x) for x in results['cxl'].split()]
    found['cxl write'], found['cxl read'] = figures[:2]
    if not trapped:
        found['ram write'], found['ram read'] = figures[2:]
    for key in 'code', 'ram_code':
        ns, verdict = results[key].split()
        if verdict != 'right':
            raise BenchError(f'{way}: the code in memory computed wrongly')
        found[key] = float(ns)
    return found


def measure_guests(say):
    """Return {way: [figures]}; the ways in turn."""
    ways = (('base', BASE, None, True), ('off', SERIES, None, True),
            ('mapped', SERIES, 'threshold=64', False))
    found = {}
    for turn in range(REPEATS):
        for way, build, policy, trapped in ways:
            say(f'Linux guest, {way}, {turn + 1} of {REPEATS}')
            found.setdefault(way, []).append(
                measure_guest(way, build, policy, trapped))
    return found


def payload_instructions(build, policy, reads, **defines):
    """Return the instructions of a whole run of the payload 'cxl'."""
    options = bare_options(policy)
    image = build_image('cxl', {**options['defines'], 'READS': reads,
                                **defines})
    devices = [x for d in options['devices'] for x in ('-device', d)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            # a vCPU alone would keep the main loop from mapping
            callgrind(folder, '--fair-sched=yes') + [
                str(build / 'qemu-system-x86_64'), '-machine',
                options['machine'], '-accel', 'tcg,thread=single',
                '-nodefaults', '-display', 'none', '-cpu', 'qemu64', '-m',
                '64M', '-bios', str(image), '-icount', 'shift=0,sleep=off',
                *options['args'], *devices, '-device',
                'isa-debug-exit,iobase=0xf4,iosize=1'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=300)
        if done.returncode != PAYLOAD_EXIT:
            raise BenchError(f'{build}: the payload did not reach its end '
                             f'(exit code {done.returncode})')
        return sum(instructions(p) for p in Path(folder).iterdir())


def count_trapped(say):
    """Return {way: instructions per read that traps}."""
    low, high = 2000, 12000
    ways = (('base', BASE, None), ('off', SERIES, None),
            ('cold', SERIES, 'threshold=1000000000'))
    found = {}
    for turn in range(REPEATS):
        for way, build, policy in ways:
            say(f'instructions of a trapped read, {way}, {turn + 1} of '
                f'{REPEATS}')
            costs = [payload_instructions(build, policy, n)
                     for n in (low, high)]
            found.setdefault(way, []).append(
                (costs[1] - costs[0]) / (high - low))
    return found


def count_mapped(say):
    """Return {what: {way: instructions per access}} of mapped memory."""
    low, high = 2000000, 12000000
    found = {what: {'mapped': [], 'RAM': []} for what in ('read', 'write')}
    for turn in range(REPEATS):
        for way, defines in (('mapped', {}), ('RAM', {'MEMORY': 0x200000})):
            say(f'instructions of an access, {way}, {turn + 1} of {REPEATS}')
            least, reads, writes = (
                payload_instructions(SERIES, 'threshold=0', r, WRITES=w,
                                     **defines)
                for r, w in ((low, low), (high, low), (low, high)))
            found['read'][way].append((reads - least) / (high - low))
            found['write'][way].append((writes - least) / (high - low))
    return found


def row(case, unit, values, ratio):
    values = {way: spread(v) for way, v in values.items()}
    above, below = ratio
    return {'case': case, 'unit': unit, 'values': values,
            'ratio': values[above]['median'] / values[below]['median']}


def guest_rows(found, case, key, ram_key, unit):
    def of(way, name):
        return [run[name] for run in found[way]]
    return row(case, unit, {'base': of('base', key), 'off': of('off', key),
                            'mapped': of('mapped', key),
                            'RAM': of('mapped', ram_key)}, ('mapped', 'base'))


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    for build in (SERIES, BASE):
        if not os.access(build / 'qemu-system-x86_64', os.X_OK):
            raise BenchError(f'{build} holds no QEMU: make build build-base')
    found = measure_guests(say)
    trapped = count_trapped(say)
    mapped = count_mapped(say)
    ways = ['base', 'off', 'mapped', 'RAM']
    return {
        'name': 'ondemand-map',
        'title': 'Threshold-mapped memory: CXL memory',
        'tables': [
            {'title': 'Bandwidth of CXL memory in a Linux guest (TCG)',
             'text': '8 bytes at a time through a dax device, in turn over '
                     '2 MiB.  base: the unpatched QEMU; off: the series '
                     'without a policy; mapped: threshold=64, after the '
                     f'switch, the best of {PASSES} passes; RAM: the same on '
                     'anonymous memory of that guest, in turn with it.  The '
                     'ratio is mapped / base.',
             'ways': ways,
             'rows': [guest_rows(found, f'{what}', f'cxl {what}',
                                 f'ram {what}', 'MB/s')
                      for what in ('write', 'read')]},
            {'title': 'Mapped CXL memory against RAM (TCG)',
             'text': 'The same runs.  The ratio is mapped / RAM.',
             'ways': ['mapped', 'RAM'],
             'rows': [row(what, 'MB/s', {
                 way: [r[f'{key} {what}'] for r in found['mapped']]
                 for way, key in (('mapped', 'cxl'), ('RAM', 'ram'))},
                          ('mapped', 'RAM')) for what in ('write', 'read')]},
            {'title': 'Instructions of the host per access to mapped memory',
             'text': 'Bare-metal TCG guest, whole process, difference of two '
                     'lengths (callgrind); 4 bytes in a loop of three '
                     'instructions.  RAM: the same loop there.  The ratio is '
                     'mapped / RAM.',
             'ways': ['mapped', 'RAM'],
             'rows': [row(what, 'instructions', values, ('mapped', 'RAM'))
                      for what, values in mapped.items()]},
            {'title': 'Code that lies in CXL memory (TCG)',
             'text': 'Time per guest instruction of a loop of three.  The '
                     'ratio is base / mapped.',
             'ways': ways,
             'rows': [{**r, 'ratio': r['values']['base']['median']
                       / r['values']['mapped']['median']}
                      for r in [guest_rows(found, 'loop of three '
                                           'instructions', 'code',
                                           'ram_code', 'ns')]]},
            {'title': 'Instructions of the host per read that traps',
             'text': 'Bare-metal TCG guest, whole process, difference of two '
                     'lengths (callgrind).  cold: with a policy, before its '
                     'threshold.  The ratio is off / base.',
             'ways': ['base', 'off', 'cold'],
             'rows': [row('CXL memory, 4 bytes', 'instructions', trapped,
                          ('off', 'base'))]},
            {'title': 'The commit that maps 256 MiB',
             'text': 'Time in which the big lock is held, in the guests of '
                     'the first table.',
             'ways': ['mapped'],
             'rows': [row('one range', 'us',
                          {'mapped': [r['commit_us']
                                      for r in found['mapped']]},
                          ('mapped', 'mapped'))]},
        ],
    }
