# SPDX-License-Identifier: GPL-2.0-or-later
"""Growth of storage: the loop's time, and what the guard costs.

STORAGE_EXTENSIONS says how many extensions are measured per way (default 60).
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from callgrind import BenchError
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from hotpath_paths import qemu_binary                       # noqa: E402
from storage_daemons import Daemons         # noqa: E402
from storage_vm import (CLUSTER_SECTORS, KIB, MIB, Loop,    # noqa: E402
                        StorageVm, guarded, make_image)

EXTENSIONS = int(os.environ.get('STORAGE_EXTENSIONS', '60'))
REPEATS = 5
START = 2 * MIB
CHUNK = 128 * KIB


# The exec provider that grows a loop device, and says how long it took
LOOP_PROGRAM = '''#!/bin/sh
# usage: program DEVICE FILE SECONDS LOG
read -r ask
case $ask in
*'"grow"'*)
    sleep "$3"
    size=${ask##*'"target": '}
    size=${size%%[!0-9]*}
    truncate -s "$size" "$2"
    losetup -c "$1"
    ;;
esac
echo "{\\"size\\": $(blockdev --getsize64 "$1")}"
'''


def stamp(event):
    """The time of a QMP event, in ms."""
    at = event['timestamp']
    return at['seconds'] * 1000 + at['microseconds'] / 1000


class Loops:
    """A machine on a loop device, with an agent and a controller."""

    def __init__(self, hold, delay=None):
        self.storage = Loop(START)
        make_image(self.storage)
        policy = {'provider': 'loop', 'chunk': CHUNK, 'align': 4096,
                  'max': 1024 * MIB}
        self.daemons = Daemons([policy])
        if delay is not None:
            program = self.daemons.dir / 'program'
            program.write_text(LOOP_PROGRAM)
            program.chmod(0o755)
            policy.update(provider='exec', command=[
                str(program), self.storage.path, str(self.storage.file),
                str(delay)])
            self.daemons.configure([policy])
        self.daemons.start_controller()
        self.daemons.start_agent()
        qmp = f'unix:{self.daemons.qmp}/vm.qmp,server=on,wait=off'
        self.vm = StorageVm('bench', guarded(
            self.storage, policy='hold' if hold else 'stop') + ('-qmp', qmp))
        self.end_event = 'BLOCK_SPACE_RESOLVED' if hold else 'RESUME'

    def close(self):
        """End everything."""
        self.vm.__exit__()
        self.daemons.close()
        self.storage.close()

    def measure(self, count):
        """Return ([ms from request to its end], [ms of the provider])."""
        with self.vm as vm:
            done = 0
            while True:
                vm.start_write(done * CLUSTER_SECTORS, done % 255 + 1)
                vm.wait_written()
                done += 1
                if self.daemons.journal.exists() and len(
                        self.daemons.growths('end')) > count:
                    break
            events = vm.vm.get_qmp_events(wait=False)
        asked, times = None, []
        for event in events:
            if event['event'] == 'BLOCK_SPACE_REQUEST':
                asked = stamp(event)
            elif event['event'] == self.end_event and asked:
                times.append(stamp(event) - asked)
                asked = None
        begun = {r['key']: r['at-us'] for r in self.daemons.growths()}
        took = [(r['at-us'] - begun[r['key']]) / 1000
                for r in self.daemons.growths('end')]
        if len(times) < count:
            raise BenchError(f'{len(times)} of {count} extensions were seen')
        # the first has all that is done once in it
        return times[1:], took[1:]


def percentile(values, percent):
    """A percentile of a list."""
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def loop_table(say):
    """The time from the request until the machine goes on."""
    rows = []
    for delay in (None, 0, 0.5, 1.0):
        count = EXTENSIONS if delay in (None, 0) else max(EXTENSIONS // 6, 5)
        found = {}
        for hold in (True, False):
            name = 'hold' if hold else 'stop'
            say(f'{name}, provider {"loop" if delay is None else delay}')
            loops = Loops(hold, delay)
            try:
                found[name] = loops.measure(count)
            finally:
                loops.close()
        case = ('loop provider' if delay is None
                else f'exec provider, {delay * 1000:.0f} ms')
        for what, pick in (('p50', 50), ('p99', 99)):
            for name, less in (('total', 0), ('without the provider', 1)):
                cells = {way: percentile([max(a - b * less, 0) for a, b
                                          in zip(times, took)], pick)
                         for way, (times, took) in found.items()}
                rows.append({
                    'case': f'{case}: {name}, {what}', 'unit': 'ms',
                    'ratio': cells['stop'] / max(cells['hold'], 0.001),
                    'values': {way: spread([value])
                               for way, value in cells.items()}})
    return {'title': 'From the request until the machine goes on',
            'text': 'Each extension adds 128 KiB; hold: until the write is '
                    'tried again, stop: until the machine runs again.  '
                    'Published for a whole extension of an LVM volume in a '
                    'cluster: 1150 ms on average (oVirt, vdsm#124); that '
                    'includes the provider.',
            'ways': ['hold', 'stop'], 'rows': rows}


def bench_writes(image, count):
    """Run qemu-img bench on a -blockdev-like description; return seconds."""
    done = subprocess.run(
        [str(qemu_binary('qemu-img')), 'bench', '-w', '-t', 'none', '-c',
         str(count), '-d', '16', '-s', '65536', f'json:{json.dumps(image)}'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=300)
    if done.returncode:
        raise BenchError(f'qemu-img bench: {done.stdout.strip()[-300:]}')
    for line in done.stdout.splitlines():
        if line.startswith('Run completed in'):
            return float(line.split()[3])
    raise BenchError('qemu-img bench tells no time')


def cost_table(say):
    """What the guard costs when there is space."""
    rows = []
    with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
        path = Path(folder) / 'disk'
        with open(path, 'wb') as file:
            os.posix_fallocate(file.fileno(), 0, 512 * MIB)
        leaves = (('a file on a disk, 64 KiB',
                   {'driver': 'file', 'filename': str(path)}, 6000),
                  ('no storage at all (null-co), 64 KiB',
                   {'driver': 'null-co', 'size': 512 * MIB}, 400000))
        for case, leaf, count in leaves:
            say(f'cost: {case}')
            ways = {'unguarded': leaf,
                    'guarded': {'driver': 'space-guard', 'policy': 'hold',
                                'file': leaf}}
            found = {way: [] for way in ways}
            for _ in range(REPEATS + 1):
                for way, image in ways.items():
                    found[way].append(
                        bench_writes({'driver': 'raw', 'file': image}, count)
                        * 1e6 / count)
            found = {way: values[1:] for way, values in found.items()}
            rows.append({
                'case': case, 'unit': 'us per write',
                'ratio': statistics.median(found['guarded'])
                / statistics.median(found['unguarded']),
                'values': {way: spread(v) for way, v in found.items()}})
    return {'title': 'Writes when there is space',
            'text': 'qemu-img bench, 16 at a time, the ways in turn.',
            'ways': ['unguarded', 'guarded'], 'rows': rows}


def run(say):
    """Run the benchmark."""
    if os.geteuid():
        raise BenchError('loop devices need root')
    return {'name': 'storage-growth', 'title': 'Growth of storage',
            'tables': [loop_table(say), cost_table(say)]}


if __name__ == '__main__':
    from report import as_text
    result = run(print)
    result.setdefault('machine', '')
    result.setdefault('date', time.strftime('%Y-%m-%d'))
    print(as_text(result))
