# SPDX-License-Identifier: GPL-2.0-or-later
"""Second stacks: what a slow server or reader costs the guest, and a call."""
import contextlib
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from callgrind import BenchError
from report import spread
from sdhci_card import longest_access, ready_rate

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'guest'))

from bare_metal import BareGuest, build_image                # noqa: E402

SERIES = ROOT / 'build' / 'out'
BASE = ROOT / 'build' / 'base' / 'out'
SHIM = SERIES / 'tests' / 'qtest' / 'libslow-fstat.so'
UNIT = SERIES / 'tests' / 'unit' / 'test-async-call'
POSTED_UNIT = SERIES / 'tests' / 'unit' / 'test-posted-mmio'
REPEATS = 5
DEAD_S = 3                  # how long the server does not answer
READER_PAUSE_S = 0.1
CARD_S = 0.1                # how long a block of the SD card takes
CARD_BLOCKS = 8
DISK_S = 0.1                # how long a floppy disk's write takes
WORK = 200000


@contextlib.contextmanager
def environment(**values):
    """Set environment variables for a QEMU that is started meanwhile."""
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


@contextlib.contextmanager
def undisturbed():
    """Run before all other work of the host, and what is started meanwhile.

    The longest of a thousand accesses is otherwise one in which the host ran
    something else.  Without the right to do so, it stays like that.
    """
    old = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *old)


def ticks(conn, seconds):
    """Return how many ticks came in a time, and the longest pause in ms."""
    start = last = time.monotonic()
    count, pause = 0, 0
    while (now := time.monotonic()) < start + seconds:
        if select.select([conn], [], [], start + seconds - now)[0]:
            count += len(conn.recv(65536))
            now = time.monotonic()
            pause, last = max(pause, now - last), now
    return count, max(pause, start + seconds - last) * 1000


def progress(build, machine):
    """Return per cent of the guest's speed, and its longest pause in ms,
    while query-block waits for a server that does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder) / 'gate'
        disk = Path(folder) / 'disk.slow'
        disk.write_bytes(b'x' * 65536)
        with environment(LD_PRELOAD=str(SHIM), SLOW_FSTAT=str(gate)):
            guest = BareGuest('bench-query-block',
                              build_image('tick', {'WORK': WORK}),
                              machine=machine, qemu=build /
                              'qemu-system-x86_64',
                              args=('-blockdev', 'file,node-name=disk,'
                                    f'filename={disk}'),
                              devices=('virtio-blk,drive=disk',))
            guest.__enter__()
        try:
            conn = guest._conn
            ticks(conn, 1)
            normal, _ = ticks(conn, DEAD_S)
            gate.touch()
            query = threading.Thread(target=guest.vm.cmd,
                                     args=('query-block',))
            query.start()
            while not Path(f'{gate}.waiting').exists():
                time.sleep(0.001)
            dead, pause = ticks(conn, DEAD_S)
            gate.unlink()
            query.join()
        finally:
            gate.unlink(missing_ok=True)
            guest.__exit__()
    return 100 * dead / normal, pause


class SlowReader(threading.Thread):
    """Reads all there is, then nothing for a while."""

    def __init__(self, sock, pause_s):
        super().__init__(daemon=True)
        self.sock, self.pause_s = sock, pause_s

    def run(self):
        while self.sock.recv(65536):
            time.sleep(self.pause_s)


def writes(build, device, pause_s, count):
    """Return the longest time of one guest's write to the debug console, and
    of all, by the host's clock, in us: from qtest's command to its answer."""
    out, out_qemu = socket.socketpair()
    out_qemu.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    test, test_qemu = socket.socketpair()
    fds = (out_qemu.fileno(), test_qemu.fileno())
    qemu = subprocess.Popen(
        [build / 'qemu-system-x86_64', '-machine', 'pc,accel=qtest', '-m',
         '16', '-nodefaults', '-display', 'none', '-chardev',
         f'socket,id=c,fd={fds[0]}', '-chardev', f'socket,id=t,fd={fds[1]}',
         '-qtest', 'chardev:t', '-device', f'isa-debugcon,chardev=c{device}'],
        pass_fds=fds, stderr=subprocess.DEVNULL)
    out_qemu.close()
    test_qemu.close()
    try:
        SlowReader(out, pause_s).start()
        answers = test.makefile('rb')
        # the first answer comes when QEMU has started
        test.sendall(b'inb 0x80\n')
        answers.readline()
        longest, begin = 0, time.monotonic()
        for _ in range(count):
            start = time.monotonic()
            test.sendall(b'outb 0xe9 0x2e\n')
            if answers.readline() != b'OK\n':
                raise BenchError(f'{build}: qtest did not answer')
            longest = max(longest, time.monotonic() - start)
        return longest * 1e6, (time.monotonic() - begin) * 1e6
    finally:
        qemu.kill()
        qemu.wait()


def floppy(build, posted):
    """Return the longest access, in us, of a guest that writes two sectors of
    a floppy disk by its data port; the disk takes 100 ms for each."""
    test, test_qemu = socket.socketpair()
    qemu = subprocess.Popen(
        [build / 'qemu-system-x86_64', '-machine', 'pc,accel=qtest', '-m',
         '16', '-nodefaults', '-display', 'none', '-chardev',
         f'socket,id=t,fd={test_qemu.fileno()}', '-qtest', 'chardev:t',
         '-blockdev', 'null-co,node-name=slow,size=1474560,latency-ns='
         f'{int(DISK_S * 1e9)}', '-device', 'floppy,drive=slow', *posted],
        pass_fds=(test_qemu.fileno(),), stderr=subprocess.DEVNULL)
    test_qemu.close()
    try:
        answers = test.makefile('rb')
        longest = 0

        def access(command):
            nonlocal longest
            start = time.monotonic()
            test.sendall(command.encode() + b'\n')
            words = answers.readline().split()
            if not words or words[0] != b'OK':
                raise BenchError(f'{build}: qtest did not answer')
            longest = max(longest, time.monotonic() - start)
            return int(words[1], 16) if len(words) > 1 else 0

        # the first answer comes when QEMU has started
        access('outb 0x3f2 0x14')
        # and for a while QEMU still starts
        for _ in range(5000):
            access('inb 0x3f4')
        longest = 0
        # write, both sides, one sector of each
        for byte in (0xc5, 0, 0, 0, 1, 2, 1, 0x1b, 0xff, *bytes(1024)):
            while access('inb 0x3f4') & 0xc0 != 0x80:
                time.sleep(0.001)
            access(f'outb 0x3f5 {byte:#x}')
        while access('inb 0x3f4') & 0xc0 != 0xc0:
            time.sleep(0.001)
        return longest * 1e6
    finally:
        qemu.kill()
        qemu.wait()


def call_costs(unit=UNIT, case='/async-call/perf', needed='thread'):
    """Return {way: [ns]} as a unit test measures them, in turn."""
    done = subprocess.run([unit, '-m', 'perf', '-p', case],
                          text=True, stdout=subprocess.PIPE, timeout=300,
                          check=True)
    found = {}
    for line in re.findall(r'ns: (.*)', done.stdout):
        words = line.split()
        for way, value in zip(words[::2], words[1::2]):
            found.setdefault(way, []).append(float(value))
    if len(found.get(needed, [])) < REPEATS:
        raise BenchError(f'{unit}: no figures: {done.stdout}')
    return found


def row(case, unit, values, above, below):
    values = {way: spread(v) for way, v in values.items()}
    return {'case': case, 'unit': unit, 'values': values,
            'ratio': values[above]['median'] / values[below]['median']
            if values[below]['median'] else 0}


def measure(say):
    """Return {what: {way: [values]}}, base and series in turn."""
    found = {}

    def keep(what, way, value):
        found.setdefault(what, {}).setdefault(way, []).append(value)

    ways = (('base', BASE, 'q35', ''),
            ('off', SERIES, 'q35', ''),
            ('on', SERIES, 'q35,query-block-deadline-ms=10000',
             ',posted-writes=on'))
    for turn in range(REPEATS):
        for way, build, machine, device in ways:
            say(f'{way}, {turn + 1} of {REPEATS}')
            speed, pause = progress(build, machine)
            keep('speed', way, speed)
            keep('pause', way, pause)
            with undisturbed():
                keep('floppy', way, floppy(build, (
                    '-global', 'isa-fdc.posted-writes=on')
                    if way == 'on' else ()))
                keep('longest', way, writes(build, device, READER_PAUSE_S,
                                            300)[0])
                keep('card', way, longest_access(build, device, CARD_S,
                                                 CARD_BLOCKS))
                keep('card, none', way, longest_access(build, device, 0,
                                                       CARD_BLOCKS))
            keep('ready', way, 1e6 * 20000 / writes(build, device, 0,
                                                    20000)[1])
            with tempfile.TemporaryDirectory() as folder:
                keep('card ready', way, ready_rate(
                    build, device, Path(folder) / 'card', 100))
    return found


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    for build in (SERIES, BASE):
        if not os.access(build / 'qemu-system-x86_64', os.X_OK):
            raise BenchError(f'{build} holds no QEMU: make build build-base')
    say('a call')
    costs = call_costs()
    posted_costs = call_costs(POSTED_UNIT, '/posted-mmio/perf', 'posted')
    found = measure(say)
    ways = ['base', 'off', 'on']
    return {
        'name': 'second_stack', 'title': 'Asynchronous I/O on a second stack',
        'tables': [
            {'title': 'query-block and a server that does not answer',
             'text': f'A bare-metal guest works for {DEAD_S} s while '
                     'query-block waits for an fstat(): its speed, in per '
                     'cent of what it is otherwise.',
             'ways': ways,
             'rows': [row('speed of the guest', '%', found['speed'], 'on',
                          'base')]},
            {'title': 'The longest pause of that guest',
             'text': 'Between two of its writes to a port, one each '
                     'millisecond or so.',
             'ways': ways,
             'rows': [row('longest pause', 'ms', found['pause'], 'on',
                          'base')]},
            {'title': 'A write to the debug console',
             'text': 'Its reader pauses for '
                     f'{READER_PAUSE_S * 1000:.0f} ms at a time: the longest '
                     'of 300 writes, from command to answer of qtest.',
             'ways': ways,
             'rows': [row('longest write', 'us', found['longest'], 'on',
                          'base')]},
            {'title': 'Writes to the debug console, reader ready',
             'text': 'As many as qtest can send.',
             'ways': ways,
             'rows': [row('reader ready', 'writes/s', found['ready'], 'on',
                          'base')]},
            {'title': 'A block of an SD card',
             'text': 'Its disk takes '
                     f'{CARD_S * 1000:.0f} ms for a block: the longest access '
                     f'of a guest that writes {CARD_BLOCKS} by the data port.',
             'ways': ways,
             'rows': [row('longest access', 'us', found['card'], 'on',
                          'base'),
                      row('the same, a disk that takes no time', 'us',
                          found['card, none'], 'on', 'base')]},
            {'title': 'An SD card, disk ready',
             'text': 'Transfers of 128 blocks by DMA to a file.',
             'ways': ways,
             'rows': [row('disk ready', 'MiB/s', found['card ready'], 'on',
                          'base')]},
            {'title': 'A floppy disk that is slow',
             'text': f'Each write takes {DISK_S * 1000:.0f} ms: the longest '
                     'access, from command to answer of qtest, while two '
                     'sectors are written through the data port.',
             'ways': ways,
             'rows': [row('longest access', 'us', found['floppy'], 'on',
                          'base')]},
            {'title': 'A posted write that does not block',
             'text': 'A handler that notes the value: called as for a region '
                     'that is not posted, and for one that is.',
             'ways': ['plain', 'posted'],
             'rows': [row('write', 'ns', posted_costs, 'posted', 'plain')]},
            {'title': 'A call that does not block',
             'text': 'A function that does nothing: called; on a coroutine; '
                     'by async_call(); and in a thread, there and back.',
             'ways': ['direct', 'coroutine', 'async-call', 'thread'],
             'rows': [row('call', 'ns', costs, 'thread', 'async-call')]},
        ]}
