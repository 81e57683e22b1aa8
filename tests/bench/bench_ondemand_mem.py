# SPDX-License-Identifier: GPL-2.0-or-later
"""Threshold-mapped memory: a file in a BAR, and the price of mapping."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from callgrind import BenchError, callgrind, instructions
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from bare_metal import build_image                              # noqa: E402
from guest import Guest                                         # noqa: E402
from hotpath_paths import report_dir                            # noqa: E402
from ondemand_guest import (MIB, SCRIPT, device_options,        # noqa: E402
                            make_file)

SERIES = ROOT / 'build' / 'out'
REPEATS = 3
PAYLOAD_EXIT = 0x10 << 1 | 1     # ondemand.S, through isa-debug-exit
GIB = 1024 * MIB
READS = 300000

# The plain RAM to compare with: a BAR that is a memory backend, on slot 0x11
PLAIN = '''
plain=/sys/bus/pci/devices/0000:00:11.0
echo 1 >$plain/enable || exit 21
reportplain()
{
    key=$1
    shift
    result $key $(cxlmem $plain/resource2 "$@")
}
'''
BANDWIDTH = SCRIPT + PLAIN + '''
report warm bandwidth 65536
sleep 1
report window bandwidth 1073741824
reportplain plain bandwidth 1073741824
report window2 bandwidth 1073741824
reportplain plain2 bandwidth 1073741824
park counts
'''
ZIPF = SCRIPT + PLAIN + f'''
report window %s 1024 {READS}
reportplain plain %s 1024 {READS}
park counts
'''
CASES = {'liked pages together, granule 4k': ('zipf', 'granule=4k'),
         'liked pages together, granule 64k': ('zipf', 'granule=64k'),
         'scattered, granule 4k': ('scatter', 'granule=4k'),
         'scattered, granule 4k, max-mapped 128M':
         ('scatter', 'granule=4k,max-mapped=128M')}
TOUCH = SCRIPT + '''
report touch touch 64 %d
sleep 2
park counts
'''


def plain_options(policy, path, size, memory):
    """The options with the window, and plain RAM of the same size."""
    options = device_options(policy, path)
    options['devices'] += ('ivshmem-plain,addr=11.0,memdev=plain',)
    options['args'] += ('-object', f'memory-backend-file,id=plain,share=on,'
                        f'mem-path={memory},size={size}')
    return options


def run_guest(name, script, options):
    """Return (results, counts, info) of a guest."""
    # the kernel's test of the timer fails where the host has little time
    with Guest(f'bench-{name}', script, timeout=600, append='no_timer_check',
               qemu=SERIES / 'qemu-system-x86_64', **options) as guest:
        guest.wait_parked('counts')
        info, = guest.vm.cmd('query-ondemand-map')
        counts = guest.counters('vm')
        guest.resume()
        return guest.finish().results, counts, info


def measure_bandwidth(folder):
    path, memory = make_file(folder), Path(folder) / 'plain'
    try:
        results, _, _ = run_guest('bandwidth', BANDWIDTH, plain_options(
            'threshold=64', path, 16 * MIB, memory))
    finally:
        path.unlink()
        memory.unlink(missing_ok=True)
    found = {}
    for name in 'window', 'plain':
        for number, what in enumerate(('write', 'read')):
            found[f'{name} {what}'] = sum(
                float(results[key].split()[number])
                for key in (name, f'{name}2')) / 2
    return found


def payload_instructions(defines, options):
    """Return the instructions of a whole run of the payload 'ondemand'."""
    image = build_image('ondemand', {'HAMMER': 0, **defines})
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            callgrind(folder) + [
                str(SERIES / 'qemu-system-x86_64'), '-machine', 'q35',
                '-accel', 'tcg,thread=single', '-nodefaults', '-display',
                'none', '-cpu', 'qemu64', '-m', '64M', '-bios', str(image),
                *options, '-device', 'isa-debug-exit,iobase=0xf4,iosize=1'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=300)
        if done.returncode != PAYLOAD_EXIT:
            raise BenchError('the payload did not reach its end '
                             f'(exit code {done.returncode})')
        return sum(instructions(p) for p in Path(folder).iterdir())


def count_mapped(folder):
    """Return the host's instructions per read: in the window, in RAM."""
    path = make_file(folder, MIB)
    window = ('-object', 'ondemand-policy,id=pol,threshold=64', '-device',
              f'ondemand-mem-pci,addr=4.0,policy=pol,file={path}')
    low, high = 2000000, 12000000
    found = {}
    for way, more, options in (('window', {}, window),
                               ('plain', {'MEMORY': 0x200000}, ())):
        costs = [payload_instructions({'READS': n, **more}, options)
                 for n in (low, high)]
        found[way] = (costs[1] - costs[0]) / (high - low)
    path.unlink()
    return found


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))]


def measure_zipf(folder, order, policy):
    """Resident MiB, and traps per chunk, of reads of a window of 1 GiB."""
    # where pages that are only read are allocated, and counted
    path, memory = Path(folder) / 'window', Path('/dev/shm/hotbench-plain')
    with open(path, 'wb') as f:
        f.truncate(GIB)
    try:
        results, counts, info = run_guest(
            'zipf', ZIPF % (order, order), plain_options(
                f'threshold=64,chunks=256,{policy}', path, GIB, memory))
        lazy = os.stat(memory).st_blocks * 512
    finally:
        path.unlink()
        memory.unlink(missing_ok=True)
    if results['window'].split()[0] != results['plain'].split()[0]:
        raise BenchError('the two windows were not used alike')
    hits = [r['hits'] for r in info['ranges'] if r['state'] == 'mapped']
    return {'resident': info['resident'] / MIB, 'lazy': lazy / MIB,
            'used': int(results['window'].split()[0]) * 4096 / MIB,
            'mapped': info['mapped'] / MIB, 'commits':
            counts['ondemand-map-commits'],
            'p50': percentile(hits, .5), 'p99': percentile(hits, .99),
            'least': min(hits)}


def measure_commits(folder, chunks):
    """The longest and the mean commit while so many chunks get mapped."""
    path = make_file(folder, 64 * MIB)
    try:
        _, counts, _ = run_guest('commits', TOUCH % chunks, device_options(
            f'threshold=64,granule=4k,chunks={chunks}', path))
    finally:
        path.unlink()
    if counts['ondemand-map-maps'] != chunks:
        raise BenchError(f'{counts["ondemand-map-maps"]} of {chunks} mapped')
    return {'longest': counts['ondemand-map-commit-max-ns'] / 1000,
            'mean': counts['ondemand-map-commit-ns'] / 1000
            / counts['ondemand-map-commits'],
            'commits': counts['ondemand-map-commits']}


def row(case, unit, found, pairs, ratio):
    """@pairs: (way, key) of the figures in @found; @ratio: two of the ways."""
    values = {way: spread([run[key] for run in found]) for way, key in pairs}
    above, below = (values[way]['median'] for way in ratio)
    return {'case': case, 'unit': unit, 'values': values,
            'ratio': above / below}


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    if not os.access(SERIES / 'qemu-system-x86_64', os.X_OK):
        raise BenchError(f'{SERIES} holds no QEMU: make build')
    folder = report_dir('bench', 'ondemand-mem')
    bandwidth, mapped, zipf, commits = [], [], {}, {}
    for turn in range(REPEATS):
        say(f'bandwidth, {turn + 1} of {REPEATS}')
        bandwidth.append(measure_bandwidth(folder))
        say(f'instructions of a read, {turn + 1} of {REPEATS}')
        mapped.append(count_mapped(folder))
        for chunks in 1, 16, 64:
            say(f'commits, {chunks} chunks, {turn + 1} of {REPEATS}')
            commits.setdefault(chunks, []).append(
                measure_commits(folder, chunks))
        for case, setup in CASES.items():
            say(f'Zipf, {case}, {turn + 1} of {REPEATS}')
            zipf.setdefault(case, []).append(measure_zipf(folder, *setup))
    return {
        'name': 'ondemand-mem',
        'title': 'Threshold-mapped memory: a file in a BAR',
        'tables': [
            {'title': 'Bandwidth after the switch, in a Linux guest (TCG)',
             'text': '8 bytes at a time, in turn over 2 MiB.  plain: a BAR '
                     'that is RAM (ivshmem-plain), in the same guest, in '
                     'turn.  The ratio is window / plain.',
             'ways': ['window', 'plain'],
             'rows': [row(what, 'MB/s', bandwidth,
                          (('window', f'window {what}'),
                           ('plain', f'plain {what}')), ('window', 'plain'))
                      for what in ('write', 'read')]},
            {'title': 'Instructions of the host per read after the switch',
             'text': 'Bare-metal TCG guest, whole process, difference of two '
                     'lengths (callgrind); the loop is two instructions.  '
                     'plain: the same loop on RAM.',
             'ways': ['window', 'plain'],
             'rows': [row('4 bytes', 'instructions', mapped,
                          (('window', 'window'), ('plain', 'plain')),
                          ('window', 'plain'))]},
            {'title': f'{READS:,} reads of a window of 1 GiB, Zipf',
             'text': 'threshold=64, 256 chunks of 4 MiB.  used: pages that '
                     'were read; lazy: RAM that is populated at its first '
                     'use, same reads; resident: contents in RAM; mapped: '
                     'hot chunks.  The ratio is resident / lazy.',
             'ways': ['used', 'lazy', 'resident', 'mapped'],
             'rows': [row(case, 'MiB', found,
                          [(k, k) for k in ('used', 'lazy', 'resident',
                                            'mapped')], ('resident', 'lazy'))
                      for case, found in zipf.items()]},
            {'title': 'Traps per mapped chunk',
             'text': 'In the guests before.  At least threshold + 1.  The '
                     'ratio is p99 / least.',
             'ways': ['least', 'p50', 'p99', 'commits'],
             'rows': [row(case, 'accesses', found,
                          [(k, k) for k in ('least', 'p50', 'p99',
                                            'commits')], ('p99', 'least'))
                      for case, found in zipf.items()]},
            {'title': 'Time with the big lock held per commit',
             'text': 'A window of 64 MiB whose chunks are made hot one after '
                     'the other.  The ratio is longest / mean.',
             'ways': ['longest', 'mean', 'commits'],
             'rows': [row(f'{n} chunks', 'us', found,
                          [(k, k) for k in ('longest', 'mean', 'commits')],
                          ('longest', 'mean'))
                      for n, found in commits.items()]},
        ],
    }
