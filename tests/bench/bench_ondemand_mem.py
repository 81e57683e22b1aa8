# SPDX-License-Identifier: GPL-2.0-or-later
"""Threshold-mapped memory: a file in a BAR, and the price of mapping."""
import os
import subprocess
import sys
import tempfile
import time
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
PASSES = 300
BANDWIDTH = SCRIPT + PLAIN + f'''
report warm bandwidth 65536
sleep 1
report both against $plain/resource2 {PASSES}
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
    """Return (results, counts, info, held) of a guest.

    held: bytes that the host holds of private RAM of 1 GiB
    """
    # the kernel's test of the timer fails where the host has little time
    with Guest(f'bench-{name}', script, timeout=600, append='no_timer_check',
               qemu=SERIES / 'qemu-system-x86_64', **options) as guest:
        guest.wait_parked('counts')
        info, = guest.vm.cmd('query-ondemand-map')
        counts = guest.counters('vm')
        held = held_bytes(guest.vm.get_pid())
        guest.resume()
        return guest.finish().results, counts, info, held


def held_bytes(pid):
    """Return what the host holds of private RAM of 1 GiB, if there is one.

    It may have become several mappings, which follow each other.
    """
    runs, end, ours = [], None, False       # [size, bytes held] of each run
    for line in Path(f'/proc/{pid}/smaps').read_text().splitlines():
        words = line.split()
        if '-' in words[0]:
            low, high = (int(x, 16) for x in words[0].split('-'))
            ours = words[1] == 'rw-p' and len(words) < 6
            if ours and low != end:
                runs.append([0, 0])
            if ours:
                runs[-1][0] += high - low
                end = high
        elif ours and words[0] == 'Rss:':
            runs[-1][1] += int(words[1]) * 1024
    return sum(held for size, held in runs if size == GIB)


def measure_bandwidth(folder):
    path, memory = make_file(folder), Path(folder) / 'plain'
    try:
        results, *_ = run_guest('bandwidth', BANDWIDTH, plain_options(
            'threshold=64', path, 16 * MIB, memory))
    finally:
        path.unlink()
        memory.unlink(missing_ok=True)
    names = ('window write', 'window read', 'plain write', 'plain read')
    return dict(zip(names, map(float, results['both'].split())))


def payload_instructions(defines, options):
    """Return the instructions of a whole run of the payload 'ondemand'."""
    image = build_image('ondemand', {'HAMMER': 0, **defines})
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            # a vCPU alone would keep the main loop from mapping
            callgrind(folder, '--fair-sched=yes') + [
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
    """Return the host's instructions per access: in the window, in RAM."""
    path = make_file(folder, MIB)
    window = ('-object', 'ondemand-policy,id=pol,threshold=64', '-device',
              f'ondemand-mem-pci,addr=4.0,policy=pol,file={path}')
    low, high = 2000000, 12000000
    found = {}
    for way, more, options in (('window', {}, window),
                               ('plain', {'MEMORY': 0x200000}, ())):
        least, reads, writes = (
            payload_instructions({'READS': r, 'WRITES': w, **more}, options)
            for r, w in ((low, low), (high, low), (low, high)))
        found[f'{way} read'] = (reads - least) / (high - low)
        found[f'{way} write'] = (writes - least) / (high - low)
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
        results, counts, info, held = run_guest(
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
            'held': held / MIB,
            'used': int(results['window'].split()[0]) * 4096 / MIB,
            'mapped': info['mapped'] / MIB, 'commits':
            counts['ondemand-map-commits'],
            'p50': percentile(hits, .5), 'p99': percentile(hits, .99),
            'least': min(hits)}


def measure_commits(folder, chunks):
    """The longest and the mean commit while so many chunks get mapped."""
    path = make_file(folder, 64 * MIB)
    try:
        _, counts, *_ = run_guest('commits', TOUCH % chunks, device_options(
            f'threshold=64,granule=4k,chunks={chunks}', path))
    finally:
        path.unlink()
    if counts['ondemand-map-maps'] != chunks:
        raise BenchError(f'{counts["ondemand-map-maps"]} of {chunks} mapped')
    return {'longest': counts['ondemand-map-commit-max-ns'] / 1000,
            'mean': counts['ondemand-map-commit-ns'] / 1000
            / counts['ondemand-map-commits'],
            'commits': counts['ondemand-map-commits']}


def measure_rate(folder, limit):
    """How many commits a second there are while 256 chunks get mapped."""
    path, seen = make_file(folder, 64 * MIB), []
    try:
        with Guest('bench-rate', SCRIPT + 'park ready\n'
                   'report touch touch 64 256\npark touched', timeout=600,
                   append='no_timer_check', qemu=SERIES / 'qemu-system-x86_64',
                   **device_options('threshold=64,granule=4k,chunks=256,'
                                    f'max-commits-per-s={limit}', path)
                   ) as guest:
            guest.wait_parked('ready')
            guest.resume()
            while not seen or seen[-1][1]['ondemand-map-maps'] < 256:
                seen.append((time.monotonic(), guest.counters('vm')))
            guest.wait_parked('touched')
            guest.resume()
            guest.finish()
    finally:
        path.unlink()
    seen = [(when, c['ondemand-map-commits']) for when, c in seen]
    first = next(i for i, (_, commits) in enumerate(seen) if commits)
    commits = seen[-1][1] - seen[first][1]
    return {'commits': seen[-1][1], 'limit': limit,
            'rate': commits / (seen[-1][0] - seen[first][0])}


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
    bandwidth, mapped, zipf, commits, rates = [], [], {}, {}, {}
    for turn in range(REPEATS):
        say(f'bandwidth, {turn + 1} of {REPEATS}')
        bandwidth.append(measure_bandwidth(folder))
        say(f'instructions of a read, {turn + 1} of {REPEATS}')
        mapped.append(count_mapped(folder))
        for chunks in 1, 16, 64:
            say(f'commits, {chunks} chunks, {turn + 1} of {REPEATS}')
            commits.setdefault(chunks, []).append(
                measure_commits(folder, chunks))
        for rate in 50, 1000:
            say(f'{rate} commits a second, {turn + 1} of {REPEATS}')
            rates.setdefault(rate, []).append(
                measure_rate(folder, rate))
    for case, setup in CASES.items():       # counts, no times: once
        say(f'Zipf, {case}')
        zipf[case] = [measure_zipf(folder, *setup)]
    return {
        'name': 'ondemand-mem',
        'title': 'Threshold-mapped memory: a file in a BAR',
        'tables': [
            {'title': 'Bandwidth after the switch, in a Linux guest (TCG)',
             'text': '8 bytes at a time, in turn over 2 MiB; the best of '
                     f'{PASSES} passes.  plain: a BAR that is RAM '
                     '(ivshmem-plain), in the same guest, pass by pass in '
                     'turn.  The ratio is window / plain.',
             'ways': ['window', 'plain'],
             'rows': [row(what, 'MB/s', bandwidth,
                          (('window', f'window {what}'),
                           ('plain', f'plain {what}')), ('window', 'plain'))
                      for what in ('write', 'read')]},
            {'title': 'Instructions of the host per access after the switch',
             'text': 'Bare-metal TCG guest, whole process, difference of two '
                     'lengths (callgrind); 4 bytes in a loop of three '
                     'instructions.  plain: the same loop on RAM.',
             'ways': ['window', 'plain'],
             'rows': [row(what, 'instructions', mapped,
                          (('window', f'window {what}'),
                           ('plain', f'plain {what}')), ('window', 'plain'))
                      for what in ('read', 'write')]},
            {'title': f'{READS:,} reads of a window of 1 GiB, Zipf',
             'text': 'threshold=64, 256 chunks of 4 MiB.  used: pages that '
                     'were read; lazy: RAM that is populated at its first '
                     'use, same reads; resident: contents in RAM; held: what '
                     'the host holds for them; mapped: hot chunks.  The ratio '
                     'is held / lazy.',
             'ways': ['used', 'lazy', 'resident', 'held', 'mapped'],
             'rows': [row(case, 'MiB', found,
                          [(k, k) for k in ('used', 'lazy', 'resident', 'held',
                                            'mapped')], ('held', 'lazy'))
                      for case, found in zipf.items()]},
            {'title': 'Traps per mapped chunk',
             'text': 'In the guests before, without those that brought a '
                     'granule in.  At least threshold + 1.  The '
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
            {'title': 'Commits a second',
             'text': 'A window of 64 MiB; 256 chunks are made hot one after '
                     'the other, as fast as the guest can; from the first '
                     'commit to the last.  The ratio is rate / limit.',
             'ways': ['commits', 'rate', 'limit'],
             'rows': [row(f'max-commits-per-s={limit}', 'commits',
                          found,
                          [(k, k) for k in ('commits', 'rate', 'limit')],
                          ('rate', 'limit'))
                      for limit, found in rates.items()]},
        ],
    }
