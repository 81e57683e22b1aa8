# SPDX-License-Identifier: GPL-2.0-or-later
"""zpipe behind virtserialport: what a byte costs the host.

A driver over qtest posts chains of the same segments to a port on a socket
chardev and on a zpipe; the peer takes the bytes and forgets them, or sends
bytes that it has.  No processor runs in the machine, so QEMU's processor time
is that of the device and the chardev.
"""
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from callgrind import BenchError, callgrind, instructions
from report import spread
from virtio_serial import (DESC_WRITE, PORT_IN, PORT_OUT, ROOT, SerialMachine)

SERIES = ROOT / 'build' / 'out'
REPEATS = 5
IDLE_S = 2
ROUNDS = 2000

# way: (chardev, the peer's way); null: what the driver and the device cost
OUT_WAYS = {
    'null': ('null,id=c', None),
    'socket': ('socket,id=c,path={},server=on,wait=off', 'socket'),
    'copy': ('zpipe,id=c,path={},server=on,wait=off,mechanism=copy', 'copy'),
    'direct': ('zpipe,id=c,path={},server=on,wait=off', 'direct'),
    'map': ('zpipe,id=c,path={},server=on,wait=off,mechanism=map,'
            'share-ram=on', 'map'),
    'touch': ('zpipe,id=c,path={},server=on,wait=off,mechanism=map,'
              'share-ram=on', 'map-touch'),
}
LINKED = [way for way in OUT_WAYS if way != 'null']
IN_WAYS = {
    'socket': OUT_WAYS['socket'],
    'copy': ('zpipe,id=c,path={},server=on,wait=off', 'copy'),
    'direct': ('zpipe,id=c,path={},server=on,wait=off', 'direct'),
}
# (label, segments of an element, bytes of each, batches of a sample)
OUT_CASES = (('1 x 4 KiB', 1, 4 << 10, 64), ('1 x 32 KiB', 1, 32 << 10, 16),
             ('16 x 4 KiB', 16, 4 << 10, 8), ('1 x 64 KiB', 1, 64 << 10, 8),
             ('16 x 32 KiB', 16, 32 << 10, 2))
IN_CASES = (('1 x 4 KiB', 1, 4 << 10, 64), ('1 x 64 KiB', 1, 64 << 10, 64))


def binary(name):
    path = SERIES / name
    if not os.access(path, os.X_OK):
        raise BenchError(f'{path} is not there: make build')
    return path


def cpu_ns(pid):
    """Processor time of all threads of a process so far."""
    total = 0
    for thread in Path(f'/proc/{pid}/task').iterdir():
        total += int((thread / 'schedstat').read_text().split()[0])
    return total


class Pair:
    """QEMU and its peer, connected; posts batches."""

    def __init__(self, way, chardev, peer_way, out, wrapper=()):
        self.way, self.out = way, out
        self.folder = tempfile.TemporaryDirectory(prefix='hotzb-', dir='/tmp')
        self.path = f'{self.folder.name}/c'
        self.machine = SerialMachine(binary('qemu-system-x86_64'),
                                     chardev.format(self.path), wrapper)
        self.peer_way, self.peer = peer_way, None

    def __enter__(self):
        self.machine.__enter__()
        self.queue = self.machine.queues[PORT_OUT if self.out else PORT_IN]
        return self

    def connect(self, wrapper=(), every=1 << 30, count=1 << 20):
        """Start the peer, if there is one; it ends after count * every."""
        if not self.peer_way:
            return
        self.peer = subprocess.Popen(
            [*wrapper, str(binary('subprojects/libzpipe/zpipe')), 'bench',
             'sink' if self.out else 'source', self.peer_way, self.path,
             str(every), str(count)], stdout=subprocess.DEVNULL)
        self._wait_connected()

    def _connected(self):
        vm = self.machine.vm
        pipes = vm.cmd('query-zpipe')
        if pipes:
            return pipes[0]['state'] == 'connected'
        name, = (x['filename'] for x in vm.cmd('query-chardev')
                 if x['label'] == 'c')
        return not name.startswith('disconnected')

    def _wait_connected(self):
        """What is sent to nobody is dropped, by a socket chardev."""
        end = time.monotonic() + 60
        while not self._connected():
            if self.peer.poll() is not None or time.monotonic() > end:
                raise BenchError(f'the peer of {self.way} does not connect')
            time.sleep(0.05)

    def __exit__(self, *exc):
        if self.peer:
            self.peer.kill()
            self.peer.wait()
        self.machine.__exit__()
        self.folder.cleanup()

    def batches(self, count):
        """Post all elements so many times; return the bytes handed over."""
        total = 0
        for _ in range(count):
            self.queue.post(self.queue.size)
            self.queue.wait()
            total += self.size if self.out else self.queue.lengths()
        return total

    def describe(self, segments, bytes_each):
        self.size = self.queue.describe(segments, bytes_each,
                                        0 if self.out else DESC_WRITE)

    def sample(self, count):
        """Return ns of processor time for each KiB, of both."""
        pids = [self.machine.pid()]
        if self.peer:
            pids.append(self.peer.pid)
        before = sum(map(cpu_ns, pids))
        total = self.batches(count)
        return (sum(map(cpu_ns, pids)) - before) / total * 1024


def measure(say, ways, cases, out):
    """Return {(case, way): [ns per KiB]}, the ways in turn."""
    found = {}
    with ExitStack() as stack:
        pairs = [stack.enter_context(Pair(way, *ways[way], out))
                 for way in ways]
        for pair in pairs:
            pair.connect()
        for label, segments, bytes_each, count in cases:
            say(f'{"to" if out else "from"} the host, elements of {label}')
            for pair in pairs:
                pair.describe(segments, bytes_each)
                pair.batches(2)
            for _ in range(REPEATS):
                for pair in pairs:
                    found.setdefault((label, pair.way), []).append(
                        pair.sample(count))
    return found


def instructions_of(way, how, case, batches):
    """Return (instructions, bytes) of a whole run, QEMU and sink."""
    _, segments, bytes_each, _ = case
    with tempfile.TemporaryDirectory() as folder:
        with Pair(way, *how, True, callgrind(folder)) as pair:
            pair.describe(segments, bytes_each)
            pair.connect(callgrind(folder), pair.size, batches)
            total = pair.batches(batches)
            pair.peer.wait(60)
        profiles = list(Path(folder).glob('callgrind.*'))
        if len(profiles) != 2:
            raise BenchError(f'{way}: callgrind wrote {len(profiles)} '
                             'profiles, one for each process was expected')
        return sum(map(instructions, profiles)), total


def count_instructions(say, ways, case):
    """Return {way: [instructions of user space for each KiB]}."""
    found = {}
    for way in ways:
        say(f'instructions, {way}, elements of {case[0]}')
        short, long = (instructions_of(way, OUT_WAYS[way], case, n)
                       for n in (2, 8))
        found[way] = [(long[0] - short[0]) / (long[1] - short[1]) * 1024]
    return found


def rows_of(found, cases, ways, unit, way):
    rows = []
    for label, *_ in cases:
        values = {w: spread(found[label, w]) for w in ways}
        rows.append({'case': label, 'unit': unit, 'values': values,
                     'ratio': values[way]['median']
                     / values['socket']['median']})
    return rows


def switches(pid):
    """(processor time, times it slept) of a process."""
    text = Path(f'/proc/{pid}/status').read_text()
    return cpu_ns(pid), int(re.search(r'^voluntary_ctxt_switches:\s*(\d+)',
                                      text, re.M)[1])


def idle(say):
    """Return {side: [ns of processor time in two idle seconds]}."""
    say('idle')
    found = {'listen': [], 'connect': []}
    zpipe = str(binary('subprojects/libzpipe/zpipe'))
    with tempfile.TemporaryDirectory(dir='/tmp') as folder, \
            ExitStack() as stack:
        sides = {}
        for name in found:
            sides[name] = process = subprocess.Popen(
                [zpipe, name, '--quiet', f'{folder}/s'],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            time.sleep(0.5)
        for _ in range(REPEATS):
            before = {n: switches(p.pid) for n, p in sides.items()}
            time.sleep(IDLE_S)
            for name, process in sides.items():
                now = switches(process.pid)
                if now[1] != before[name][1]:
                    raise BenchError(f'{name} woke up while it was idle')
                found[name].append(now[0] - before[name][0])
    return found


def system_calls(say):
    """Return {way: system calls of both sides for each round trip}."""
    found = {}
    if not shutil.which('strace'):
        raise BenchError('strace is not installed: run scripts/bootstrap')
    for way in ('socket', 'sleep'):
        say(f'system calls, {way}')
        counts = []
        for rounds in (ROUNDS, 2 * ROUNDS):
            with tempfile.NamedTemporaryFile('r') as log:
                done = subprocess.run(
                    ['strace', '-f', '-c', '-o', log.name,
                     str(binary('subprojects/libzpipe/zpipe')), 'bench',
                     '--tests=pingpong', '--repeats=1', f'--ways={way}',
                     f'--rounds={rounds}'], stdout=subprocess.DEVNULL,
                    timeout=300)
                if done.returncode:
                    raise BenchError('strace does not run zpipe bench')
                counts.append(int(re.search(
                    r'(\d+)(?:\s+\d+)?\s+total\s*$', log.read())[1]))
        found[way] = [(counts[1] - counts[0]) / ROUNDS]
    return found


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    sent = measure(say, OUT_WAYS, OUT_CASES, True)
    received = measure(say, IN_WAYS, IN_CASES, False)
    counted = {case[0]: count_instructions(say, LINKED, case)
               for case in OUT_CASES[2:4]}
    still = idle(say)
    text = ('QEMU and its peer together, all threads; a driver over qtest '
            'posts batches of 128 elements.  ')
    tables = [
        {'title': 'From the guest: processor time of the host',
         'text': text + 'null: the driver and the device, with a chardev that '
                        'forgets all; touch: map, and the peer reads every '
                        'byte.  The ratio is map / socket.',
         'ways': list(OUT_WAYS),
         'rows': rows_of(sent, OUT_CASES, OUT_WAYS, 'ns per KiB', 'map')},
        {'title': 'The same, one copy',
         'text': text + 'The ratio is direct / socket.',
         'ways': ['socket', 'direct'],
         'rows': rows_of(sent, OUT_CASES, ('socket', 'direct'), 'ns per KiB',
                         'direct')},
        {'title': 'To the guest: processor time of the host',
         'text': text + 'A socket chardev puts at most 4 KiB into an element. '
                        ' The ratio is direct / socket.',
         'ways': list(IN_WAYS),
         'rows': rows_of(received, IN_CASES, IN_WAYS, 'ns per KiB',
                         'direct')},
        {'title': 'From the guest: instructions of user space',
         'text': 'QEMU and peer (callgrind, which does not see the kernel: '
                 'the copies of the socket are not in it).  The ratio is '
                 'map / socket.',
         'ways': LINKED,
         'rows': [{'case': label, 'unit': 'instructions per KiB',
                   'values': {w: spread(v) for w, v in counts.items()},
                   'ratio': counts['map'][0] / counts['socket'][0]}
                  for label, counts in counted.items()]},
    ]
    calls = system_calls(say)
    tables.append(
        {'title': 'System calls of both sides for a round trip of 64 bytes',
         'text': f'Idle, in {REPEATS} times {IDLE_S} seconds, no side of a '
                 'connection was woken, and they used '
                 f'{sum(still["listen"])} and {sum(still["connect"])} ns of '
                 'processor time.  Counted by strace, difference of two lengths.  To wake and '
                 'to go to sleep are one each; strace slows both sides down, '
                 'so that a zpipe finds the other awake at times.  The ratio '
                 'is sleep / socket.',
         'ways': list(calls),
         'rows': [{'case': 'both sleep', 'unit': 'calls',
                   'values': {w: spread(v) for w, v in calls.items()},
                   'ratio': calls['sleep'][0] / calls['socket'][0]}]})
    return {'name': 'zpipe-qemu',
            'title': 'Asynchronous pipe: a guest\'s port', 'tables': tables}
