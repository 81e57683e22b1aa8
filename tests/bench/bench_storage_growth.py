# SPDX-License-Identifier: GPL-2.0-or-later
"""Growth of storage: the loop's time, and what the guard costs.

STORAGE_EXTENSIONS says how many extensions are measured per way (default 60),
STORAGE_TABLES which of the tables loop, cost, instructions, proactive and
machines are wanted (default all).
"""
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from callgrind import BenchError, callgrind, instructions
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from hotpath_paths import qemu_binary, use_qemu_python      # noqa: E402
from storage_daemons import Daemons         # noqa: E402
from storage_vm import (CLUSTER_SECTORS, KIB, MIB, Loop,    # noqa: E402
                        StorageVm, Tmpfs, guarded, make_image)

FLOOR = 25                      # samples, for each case
EXTENSIONS = int(os.environ.get('STORAGE_EXTENSIONS', '60'))
COST_PAIRS = 41
START = 2 * MIB
CHUNK = 128 * KIB
GIB = 1024 * MIB
STEP = 64 * MIB
WATER = 32 * MIB
PROACTIVE_EXTENSIONS = 72       # some grow by more than one step
PROACTIVE_TRIALS = 6
MACHINES = int(os.environ.get('STORAGE_MACHINES', '100'))


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
            self.floor = floor(vm, self.daemons.dir)
        asked, times = None, []
        for event in events:
            if event['event'] == 'BLOCK_SPACE_REQUEST':
                asked = stamp(event)
            elif event['event'] == self.end_event and asked:
                times.append(stamp(event) - asked)
                asked = None
        took = [r['provider-us'] / 1000 for r in self.daemons.growths('end')]
        if len(times) < count:
            raise BenchError(f'{len(times)} of {count} extensions were seen')
        # the first has all that is done once in it
        return times[1:], took[1:]


def floor(vm, folder):
    """Return {what: [ms]} of what nothing here can be faster than."""
    found = {'a line that is appended and synced': [],
             'four messages between two processes': [],
             "QEMU's stop and cont": []}
    synced, messages, stops = found.values()
    for _ in range(FLOOR):
        start = time.perf_counter()
        vm.cmd('stop')
        vm.cmd('cont')
        stops.append((time.perf_counter() - start) * 1000)
    here, there = socket.socketpair()
    peer = subprocess.Popen(['cat'], stdin=there, stdout=there)
    there.close()
    with open(folder / 'floor', 'wb', 0) as file:
        for _ in range(FLOOR):
            time.sleep(0.005)
            start = time.perf_counter()
            file.write(b'x' * 400)
            os.fdatasync(file.fileno())
            synced.append((time.perf_counter() - start) * 1000)
            time.sleep(0.005)
            start = time.perf_counter()
            for _ in range(2):
                here.sendall(b'x' * 200)
                here.recv(200)
            messages.append((time.perf_counter() - start) * 1000)
    here.close()
    peer.wait()
    return found


def percentile(values, percent):
    """A percentile of a list."""
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def loop_table(say):
    """The time from the request until the machine goes on."""
    rows, floors = [], {}
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
            for what, values in loops.floor.items():
                floors.setdefault(what, {}).setdefault(name, []).extend(values)
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
    for what, values in floors.items():
        for name, pick in (('p50', 50), ('p99', 99)):
            cells = {way: percentile(v, pick) for way, v in values.items()}
            rows.append({'case': f'for comparison: {what}, {name}',
                         'unit': 'ms', 'ratio': cells['stop'] / cells['hold'],
                         'values': {way: spread([value])
                                    for way, value in cells.items()}})
    return {'title': 'From the request until the machine goes on',
            'text': 'Each extension adds 128 KiB; hold: until the write is '
                    'tried again, stop: until the machine runs again.  The '
                    "provider's time is what the controller waited for it.  "
                    'Published for a whole extension of an LVM volume in a '
                    'cluster: 1150 ms on average (oVirt, vdsm#124); that '
                    'includes the provider.',
            'ways': ['hold', 'stop'], 'rows': rows}


def bench_writes(image, count):
    """Run qemu-img bench on a -blockdev-like description.

    Returns the time and the processor's time, in us per write.
    """
    with tempfile.TemporaryFile('w+') as output:
        process = subprocess.Popen(
            [str(qemu_binary('qemu-img')), 'bench', '-w', '-t', 'none', '-c',
             str(count), '-d', '16', '-s', '65536',
             f'json:{json.dumps(image)}'], stdout=output,
            stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    found = re.search(r'Run completed in ([0-9.]+) seconds', text)
    if process.returncode or not found:
        raise BenchError(f'qemu-img bench: {text.strip()[-300:]}')
    return [seconds * 1e6 / count for seconds in
            (float(found.group(1)), usage.ru_utime + usage.ru_stime)]


def cost_rows(case, leaf, count):
    """Compare short runs in pairs: noise is longer than one of them."""
    guarded_leaf = {'driver': 'space-guard', 'policy': 'hold', 'file': leaf}
    found = []
    for i in range(COST_PAIRS + 1):
        order = [leaf, guarded_leaf][::1 if i % 2 else -1]
        pair = [bench_writes({'driver': 'raw', 'file': image}, count)
                for image in order]
        found.append(pair[::1 if i % 2 else -1])
    rows = []
    for index, kind in enumerate(('time', "processor's time")):
        pairs = [(off[index], on[index]) for off, on in found[1:]]
        ratios = sorted(on / off for off, on in pairs)
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append({
            'case': f'{case}, {kind}; ratio {median:.3f}, half of them in '
                    f'{low:.3f} to {high:.3f}',
            'unit': 'us per write', 'ratio': median,
            'values': {'unguarded': spread([off for off, _ in pairs]),
                       'guarded': spread([on for _, on in pairs])}})
    return rows


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
            rows += cost_rows(case, leaf, count)
    return {'title': 'Writes when there is space',
            'text': f'qemu-img bench, 16 at a time, {COST_PAIRS} pairs of '
                    'short runs; the ratio is the median of those of the '
                    'pairs.',
            'ways': ['unguarded', 'guarded'], 'rows': rows}


def count_instructions(image, writes):
    """Run qemu-img bench under callgrind; return the instructions."""
    with tempfile.TemporaryDirectory(dir='/tmp') as folder:
        run_program(*callgrind(folder), qemu_binary('qemu-img'), 'bench', '-w',
                    '-t', 'none', '-c', writes, '-d', '1', '-s', '65536',
                    f'json:{json.dumps(image)}')
        return sum(instructions(path) for path in Path(folder).iterdir())


def instruction_table(say):
    """What the guard costs when there is space, without noise."""
    leaf = {'driver': 'null-co', 'size': 512 * MIB}
    ways = {'unguarded': leaf,
            'guarded': {'driver': 'space-guard', 'policy': 'hold',
                        'file': leaf},
            'raw node': {'driver': 'raw', 'file': leaf}}
    few, many = 2000, 12000
    found = {}
    for way, image in ways.items():
        say(f'instructions: {way}')
        image = {'driver': 'raw', 'file': image}
        found[way] = (count_instructions(image, many)
                      - count_instructions(image, few)) / (many - few)
    return {'title': 'Instructions of a write when there is space',
            'text': 'qemu-img bench on null-co under callgrind; raw node: '
                    'another node in the place of the guard.',
            'ways': list(ways), 'rows': [{
                'case': 'a write', 'unit': 'instructions',
                'ratio': found['guarded'] / found['unguarded'],
                'values': {way: spread([n]) for way, n in found.items()}}]}


class Exported:
    """A disk that qemu-storage-daemon exports, and an agent for it."""

    def __init__(self, guard, policy, size):
        use_qemu_python()
        self.folder = tempfile.TemporaryDirectory(dir='/dev/shm')
        self.file = Path(self.folder.name, 'backing')
        with open(self.file, 'wb') as file:
            file.truncate(size)
        self.loop = run_program('losetup', '-f', '--show', self.file).strip()
        run_program(qemu_binary('qemu-img'), 'create', '-q', '-f', 'qcow2',
                    self.loop, '64G')
        self.daemons = Daemons([{**policy, 'path': self.loop}])
        self.qmp = f'{self.folder.name}/qmp'
        self.nbd = f'{self.folder.name}/nbd'
        nodes = ['--blockdev', f'driver=host_device,node-name=data,'
                 f'filename={self.loop},cache.direct=on']
        below = 'data'
        if guard is not None:
            nodes += ['--blockdev', 'driver=space-guard,node-name=guard,'
                      f'file=data,policy=hold{guard}']
            below = 'guard'
        self.qsd = subprocess.Popen(
            [str(qemu_binary('storage-daemon/qemu-storage-daemon')), *nodes,
             '--blockdev', f'driver=qcow2,node-name=disk,file={below}',
             '--nbd-server', f'addr.type=unix,addr.path={self.nbd}',
             '--export', 'nbd,id=e,node-name=disk,writable=on',
             '--chardev', f'socket,id=a,path={self.qmp},server=on,wait=off',
             '--monitor', 'a', '--chardev',
             f'socket,id=b,path={self.daemons.qmp}/vm.qmp,server=on,wait=off',
             '--monitor', 'b'])
        from qemu.qmp.legacy import QEMUMonitorProtocol
        end = time.monotonic() + 10
        while not Path(self.qmp).exists() or not Path(self.nbd).exists():
            if time.monotonic() > end:
                raise BenchError('qemu-storage-daemon does not start')
            time.sleep(0.02)
        self.monitor = QEMUMonitorProtocol(self.qmp)
        self.monitor.connect()
        if guard is not None:
            self.daemons.start_controller()
            self.daemons.start_agent()

    def write(self, amount, rate):
        """Write so much; return (bytes per second, causes of requests)."""
        image = {'driver': 'raw', 'file': {
            'driver': 'nbd', 'export': 'disk',
            'server': {'type': 'unix', 'path': self.nbd}}}
        extra = []
        if rate:
            extra = ['--object', f'throttle-group,id=g,x-bps-write={rate}']
            image = {'driver': 'throttle', 'throttle-group': 'g',
                     'file': image['file']}
        start = time.monotonic()
        run_program(qemu_binary('qemu-img'), 'bench', *extra, '-w', '-t',
                    'none', '-c', amount // MIB, '-d', 8, '-s', MIB,
                    f'json:{json.dumps(image)}')
        seconds = time.monotonic() - start
        self.monitor.cmd('query-named-block-nodes')     # behind the events
        causes = [event['data']['cause'] for event in
                  self.monitor.get_events()
                  if event['event'] == 'BLOCK_SPACE_REQUEST']
        return amount / seconds, causes

    def close(self):
        """End everything."""
        self.monitor.close()
        self.qsd.terminate()
        self.qsd.wait()
        self.daemons.close()
        run_program('losetup', '-d', self.loop)
        self.folder.cleanup()


def run_program(*command):
    """Run a program; return what it printed."""
    done = subprocess.run([str(x) for x in command], text=True, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BenchError(f'{command[0]}: {done.stdout.strip()[-300:]}')
    return done.stdout


def proactive_trial(rate):
    """Return (bytes per second, held, asked) of so many extensions."""
    disk = Exported(f',low-water={WATER},lead-ms=50',
                    {'provider': 'loop', 'chunk': STEP, 'max': 64 * GIB},
                    STEP)
    try:
        got, causes = disk.write(STEP * PROACTIVE_EXTENSIONS, rate)
    finally:
        disk.close()
    return got, causes.count('write'), len(causes)


def unguarded_trial():
    """Return the bytes per second when there is space from the beginning."""
    disk = Exported(None, {}, STEP * (PROACTIVE_EXTENSIONS + 4))
    try:
        return disk.write(STEP * PROACTIVE_EXTENSIONS, 0)[0]
    finally:
        disk.close()


def proactive_table(say):
    """The highest rate at which storage grows before a write waits."""
    free = max(unguarded_trial() for _ in range(3))
    say(f'unguarded: {free / MIB:.0f} MiB/s')
    low, high, best, asked, told = 0, free * 1.1, 0, 0, []
    for number in range(PROACTIVE_TRIALS):
        rate = (low + high) / 2 if number else high
        got, held, count = proactive_trial(int(rate))
        told.append(f'{got / MIB:.0f} MiB/s, at most {rate / MIB:.0f}: '
                    f'{count} requests, {held} too late')
        say(told[-1])
        if held:
            high = rate
        else:
            low, best, asked = rate, max(best, got), count
            if high <= low * 1.05:
                break
    row = {'case': f'{asked} extensions of {STEP // MIB} MiB, none too late',
           'unit': 'MiB/s', 'ratio': best / free,
           'values': {'unguarded': spread([free / MIB]),
                      'guarded': spread([best / MIB])}}
    return {'title': 'Highest rate of writing without a write that waits',
            'text': 'qemu-img bench through NBD to qemu-storage-daemon, qcow2 '
                    'on a loop device in memory, by bisection.  The ratio is '
                    'that of guarded to unguarded.  All trials: '
                    + '; '.join(told) + '.',
            'ways': ['unguarded', 'guarded'], 'rows': [row]}


def machines_table(say):
    """Many machines that run out of storage at about the same time."""
    use_qemu_python()
    from qemu.machine import QEMUMachine
    machines, writers = [], []
    daemons = Daemons([{'provider': 'tmpfs', 'chunk': MIB, 'align': 4096,
                        'max': GIB}])
    try:
        daemons.start_controller()
        for i in range(MACHINES):
            storage = Tmpfs(MIB)
            path = storage.dir / 'disk'
            with open(path, 'wb') as file:
                file.truncate(8 * MIB)
            vm = QEMUMachine(str(qemu_binary()), name=f'many{i}',
                             base_temp_dir='/tmp', qmp_timer=60)
            machines.append((storage, vm))
            vm.add_args(
                '-machine', 'none', '-accel', 'qtest', '-nodefaults',
                '-blockdev', f'driver=file,node-name=data,filename={path}',
                '-blockdev', 'driver=space-guard,node-name=disk,file=data,'
                'policy=hold,max-hold-ms=25000',
                '-qmp', f'unix:{daemons.qmp}/vm{i}.qmp,server=on,wait=off')
            vm.launch()
            vm.cmd('nbd-server-start', addr={
                'type': 'unix', 'data': {'path': f'{storage.dir}/nbd'}})
            vm.cmd('block-export-add', type='nbd', id='e', writable=True,
                   **{'node-name': 'disk'})
        say(f'{MACHINES} machines run')
        daemons.start_agent()
        time.sleep(2)
        for storage, _ in machines:
            writers.append(subprocess.Popen(
                [str(qemu_binary('qemu-io')), '-f', 'raw', '-c',
                 'write -P 5 0 1536k',
                 f'nbd+unix:///disk?socket={storage.dir}/nbd'],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        failed = sum(writer.wait(60) != 0 for writer in writers)
        times, most = [], 0
        for _, vm in machines:
            asked = {}
            vm.cmd('query-status')      # behind the events
            for event in vm.get_qmp_events(wait=False):
                if event['event'] == 'BLOCK_SPACE_REQUEST':
                    asked[event['data']['id']] = stamp(event)
                    most = max(most, len(asked))
                elif event['event'] == 'BLOCK_SPACE_RESOLVED':
                    times.append(stamp(event)
                                 - asked.pop(event['data']['id']))
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
        for _, vm in machines:
            vm.shutdown(hard=True)
        daemons.close()
        for storage, _ in machines:
            storage.close()
    if failed or len(times) < MACHINES:
        raise BenchError(f'{failed} writes failed, {len(times)} of {MACHINES} '
                         'requests were served')
    rows = [{'case': f'{MACHINES} machines, {what}', 'unit': 'ms', 'ratio': 1,
             'values': {'tmpfs': spread([percentile(times, pick)])}}
            for what, pick in (('p50', 50), ('p99', 99))]
    return {'title': 'Many machines at once',
            'text': f'All {len(times)} requests served, at most {most} open '
                    'at a time per machine.',
            'ways': ['tmpfs'], 'rows': rows}


def run(say):
    """Run the benchmark."""
    if os.geteuid():
        raise BenchError('loop devices need root')
    tables = {'loop': loop_table, 'cost': cost_table,
              'instructions': instruction_table, 'proactive': proactive_table,
              'machines': machines_table}
    wanted = os.environ.get('STORAGE_TABLES', ' '.join(tables)).split()
    if not wanted or not set(wanted) <= set(tables):
        raise BenchError(f'STORAGE_TABLES: {" ".join(tables)}')
    return {'name': 'storage-growth', 'title': 'Growth of storage',
            'tables': [tables[name](say) for name in wanted]}


if __name__ == '__main__':
    from report import as_text
    result = run(print)
    result.setdefault('machine', '')
    result.setdefault('date', time.strftime('%Y-%m-%d'))
    print(as_text(result))
