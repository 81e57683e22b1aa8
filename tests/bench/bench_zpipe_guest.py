# SPDX-License-Identifier: GPL-2.0-or-later
"""zpipe behind a Linux guest's port: what is left of it from end to end.

Linux cuts what a program writes into pieces of 32 KiB and posts reads of 4 KiB,
and without KVM it is the guest that takes the time.  So this is no measure of
the mechanism (bench_zpipe_qemu.py is one); it shows that a guest gains nothing
in speed, and loses nothing either.
"""
import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack

from bench_zpipe_qemu import binary
from callgrind import BenchError
from report import spread
from test_zpipe import ShellGuest

REPEATS = 5
MIB = 1 << 20
STEP, STEPS = 8, 9          # MiB; the first is for the warm-up
TOTAL = STEP * STEPS
COMMON = 'server=on,wait=off'
# port: (kind of chardev, options, the peer's way out, and in)
PORTS = {
    'socket': ('socket', COMMON, 'socket', 'socket'),
    'copy': ('zpipe', f'{COMMON},mechanism=copy', 'copy', 'copy'),
    'direct': ('zpipe', COMMON, 'direct', 'direct'),
    'map': ('zpipe', f'{COMMON},mechanism=map,share-ram=on', 'map', None),
}


def connected(guest, port):
    for pipe in guest.vm.cmd('query-zpipe'):
        if pipe['label'] == port:
            return pipe['state'] == 'connected'
    name, = (x['filename'] for x in guest.vm.cmd('query-chardev')
             if x['label'] == port)
    return not name.startswith('disconnected')


def wait_connected(guest, port, state):
    while connected(guest, port) != state:
        guest.check_time(f'{port} connected: {state}')
        time.sleep(0.02)


def sample(guest, folder, port, side, way):
    """Return MiB/s between the first and the last step."""
    guest.extend(120)
    with subprocess.Popen(
            [str(binary('subprojects/libzpipe/zpipe')), 'bench', side, way,
             f'{folder}/{port}', f'{STEP}M', str(STEPS)], text=True,
            stdout=subprocess.PIPE) as peer:
        try:
            wait_connected(guest, port, True)
            guest.run(f'timeout 100 head -c {TOTAL * MIB} '
                      + (f'/dev/zero >$(port {port})' if side == 'sink' else
                         f'<$(port {port}) >/dev/null'))
            lines = [json.loads(x) for x in peer.communicate(timeout=100)[0]
                     .splitlines()]
        finally:
            peer.kill()
    if len(lines) != STEPS:
        raise BenchError(f'{port}: the peer has {len(lines)} of {STEPS} steps')
    wait_connected(guest, port, False)
    seconds = (lines[-1]['now_ns'] - lines[0]['now_ns']) / 1e9
    return (lines[-1]['bytes'] - lines[0]['bytes']) / MIB / seconds


def measure(say, guest, folder):
    """Return {(side, port): [MiB/s]}, the ports in turn."""
    found = {}
    for side, index in (('sink', 2), ('source', 3)):
        for turn in range(REPEATS):
            say(f'{side}, {turn + 1} of {REPEATS}')
            for port, how in PORTS.items():
                if how[index]:
                    found.setdefault((side, port), []).append(
                        sample(guest, folder, port, side, how[index]))
    return found


def run(say):
    """Return the benchmark's report; see tests/bench/run."""
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix='hotzb-', dir='/tmp'))
        guest = stack.enter_context(ShellGuest(
            'bench-zpipe',
            {port: f'path={folder}/{port},{how[1]}'
             for port, how in PORTS.items()},
            kinds={port: how[0] for port, how in PORTS.items()},
            machine='q35,memory-backend=m',
            args=['-object', 'memory-backend-memfd,id=m,size=256M,share=on,'
                  'seal-write=on']))
        guest.wait_result('ready')
        found = measure(say, guest, folder)
        guest.end()
    rows = []
    for side, case in (('sink', 'from the guest'), ('source', 'to the guest')):
        values = {port: spread(found[side, port]) for port in PORTS
                  if (side, port) in found}
        rows.append({'case': case, 'unit': 'MiB/s', 'values': values,
                     'ratio': values['direct']['median']
                     / values['socket']['median']})
    return {'name': 'zpipe-guest',
            'title': 'Asynchronous pipe: a Linux guest, end to end',
            'tables': [{
                'title': 'Throughput of a port, a Linux guest without KVM',
                'text': f'{TOTAL - STEP} MiB after {STEP} MiB of warm-up, on '
                        f'{os.cpu_count()} processors; the guest\'s own work '
                        'is nearly all of it.  The ratio is direct / socket.',
                'ways': list(PORTS), 'rows': rows}]}
