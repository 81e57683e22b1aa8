# SPDX-License-Identifier: GPL-2.0-or-later
"""zpipe: the library against pipe and socket.

'zpipe bench' measures each way in turn, several times; this arranges what it
says.  A row's ways were measured in one run, interleaved.
"""
import json
import os
import subprocess
from pathlib import Path

from callgrind import BenchError
from report import spread

SERIES = Path(__file__).resolve().parent.parent.parent / 'build' / 'out'
SIZES = ('64', '1K', '16K', '64K', '1M', '4M')
WAYS = ('memcpy', 'pipe', 'socket', 'copy', 'push', 'pull', 'cma-push',
        'cma-pull', 'map', 'auto', 'socket-touch', 'map-touch')
REPEATS = 5
LIMIT_S = 900
MIB = 1 << 20

THROUGHPUT = (
    ('hot', 'Throughput, small buffers that stay in the cache'),
    ('cold', 'Throughput, 64 MiB of buffers on each side'),
)
# case, the socket's way, the zpipe's
PING_PONG = (
    ('both sleep', 'socket', 'sleep'),
    ('both sleep, on two processors', 'socket-2', 'sleep-2'),
    ('on two, a zpipe with a spin window', 'socket-2', 'spin-2'),
    ('on two, a zpipe that polls', 'socket-2', 'poll-2'),
)
TEXT = ('Two processes, each on a processor, both sleep when there is nothing '
        'to do.  push, pull: one copy, by the writer (a read was posted '
        'first) or by the reader; cma-: the same by process_vm_writev() and '
        'process_vm_readv(); map: the reader looks at the writer\'s memory, '
        '-touch: and reads every byte.  memcpy: one process.  ')


def samples(say, *options):
    """Run 'zpipe bench'; return its samples."""
    command = SERIES / 'subprojects' / 'libzpipe' / 'zpipe'
    if not os.access(command, os.X_OK):
        raise BenchError(f'{command} is not there: make build')
    say(f'zpipe bench {" ".join(options)}')
    done = subprocess.run([str(command), 'bench', '--json',
                           f'--repeats={REPEATS}', *options], text=True,
                          stdout=subprocess.PIPE, timeout=LIMIT_S)
    if done.returncode:
        raise BenchError(f'zpipe bench ended with {done.returncode}')
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_way(found, figure, **which):
    """Return {way: spread of figure(sample)} of the samples that match."""
    values = {}
    for sample in found:
        if all(sample[k] == v for k, v in which.items()):
            values.setdefault(sample['way'], []).append(figure(sample))
    return {way: spread(v) for way, v in values.items()}


def row(case, unit, values, above, below):
    return {'case': case, 'unit': unit, 'values': values,
            'ratio': values[above]['median'] / values[below]['median']}


def rate(sample):
    return sample['count'] / sample['seconds'] / MIB


def cost(sample):
    return sample['cpu_ns'] * 1024


def round_trip(sample):
    return sample['seconds'] / sample['count'] * 1e6


def kicks(sample):
    return sample['kicks'] / sample['count']


def bytes_of(size):
    return int(size.rstrip('KM')) * {'K': 1 << 10, 'M': MIB}.get(size[-1], 1)


def throughput(say):
    tables = []
    found = samples(say, '--tests=throughput', f'--sizes={",".join(SIZES)}',
                    f'--ways={",".join(WAYS)}')
    for name, title in THROUGHPUT:
        tables.append({
            'title': title,
            'text': TEXT + 'The ratio is the better of push and pull / '
                           'socket.',
            'ways': list(WAYS), 'rows': []})
        for size in SIZES:
            values = by_way(found, rate, set=name, size=bytes_of(size))
            best = max('push', 'pull', key=lambda w: values[w]['median'])
            tables[-1]['rows'].append(row(size, 'MiB/s', values, best,
                                          'socket'))
    tables.append({
        'title': 'Processor time of both processes, small buffers',
        'text': 'The ratio is map / socket.', 'ways': list(WAYS[1:]),
        'rows': [row(size, 'ns per KiB',
                     {w: v for w, v in by_way(
                         found, cost, set='hot', size=bytes_of(size)).items()
                      if w != 'memcpy'}, 'map', 'socket')
                 for size in SIZES]})
    return tables


def ping_pong(say):
    found = samples(say, '--tests=pingpong')
    time = by_way(found, round_trip)
    rows = [row(case, 'us', {'socket': time[socket], 'zpipe': time[way]},
                'zpipe', 'socket')
            for case, socket, way in PING_PONG]
    calls = by_way(found, kicks)
    return [
        {'title': '64 bytes there and back',
         'text': 'Medians of batches of eight.  The ratio is zpipe / socket.',
         'ways': ['socket', 'zpipe'], 'rows': rows},
        {'title': 'System calls that wake the other side, in each direction',
         'text': 'Of the side that asks, in the samples above.  The ratio is '
                 'sleep-2 / sleep.',
         'ways': ['sleep', 'sleep-2', 'spin-2', 'poll-2'],
         'rows': [row('64 bytes', 'calls',
                      {w: calls[w] for w in ('sleep', 'sleep-2', 'spin-2',
                                             'poll-2')},
                      'sleep-2', 'sleep')]}]


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    return {'name': 'zpipe',
            'title': 'Asynchronous pipe: the library',
            'tables': ping_pong(say) + throughput(say)}
