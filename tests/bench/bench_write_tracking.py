# SPDX-License-Identifier: GPL-2.0-or-later
"""Write tracking: what a sync of the walker costs and marks; in the lab, how
exact it is, what its traps cost, and for how long a guest is without its fast
card when it is unplugged early and late."""
import calendar
import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

from callgrind import BenchError
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'lab'))
from lab import (GuestFailure, Lab, LabError, LabHung,     # noqa: E402
                 console_tail)
from traffic import TRAFFIC                 # noqa: E402

PROGRAM = ROOT / 'build' / 'out' / 'tests' / 'unit' / 'test-write-walk'
REPEATS = 5
GUEST_PAGES = 65536             # of 256 MiB: what type1 reports at each sync
PAGE = 4096

LAB_PAIRS = 3
BIG_MIB = 1024                  # the guest of the gap
BALLAST = 7                     # pieces of 64 MiB
BANDWIDTH = 12 << 20
LIMIT_S = 400                   # to boot and fill memory, to migrate, to end
SYNCS = 8                       # of the precision, its first and last included

# The guest receives all the time, and says when it is without its card.
FAST = TRAFFIC + '''
up igbvf 2 || exit 1
( while :; do
      wget -q -O /dev/null http://10.2.0.1:8002/down || usleep 100000
  done ) &
'''
WATCH = '''
( while [ -n "$(card igbvf)" ]; do usleep 50000; done
  gone=$(cut -d' ' -f1 /proc/uptime)
  while [ -z "$(card igbvf)" ]; do usleep 50000; done
  back=$(cut -d' ' -f1 /proc/uptime)
  # told at the destination: a line that is under way at the switchover is
  # half here, half there
  result gone $gone
  result back $back ) &
watcher=$!
'''
FILL = f'''
head -c 8192k /dev/urandom >/tmp/random
[ -s /tmp/random ] || exit 3
n=0; while [ $n -lt {BALLAST * 8} ]; do
    cat /tmp/random; n=$((n + 1)); done >/tmp/ballast
( while :; do
      dd if=/tmp/random of=/tmp/ballast bs=1M count=4 conv=notrunc 2>/dev/null
      sleep 1
  done ) &
'''
PORTS = ['pcie-root-port,id=rp1,chassis=1,slot=1',
         'pcie-root-port,id=rp2,chassis=2,slot=2']


def standby(unplug):
    return (f'virtio-net-pci,netdev=h1,id=net1,bus=rp1,failover=on,'
            f'failover-unplug={unplug},romfile=')


ARGS = ['-netdev', 'user,id=h1,restrict=on', '-msg', 'timestamp=on']


# ------------------------------------------------------------ synthetic rings

def measure():
    """Return {name: figure} of one run of the unit test's benchmark."""
    text = subprocess.run([PROGRAM, '-m', 'perf', '-p', '/write-walk/perf'],
                          check=True, capture_output=True, text=True,
                          timeout=120).stdout
    found = {k: float(v) for k, v in re.findall(r'perf (\S+) (\d+)', text)}
    if len(found) != 3:
        raise BenchError(f'{PROGRAM} printed no figures')
    return found


def rings(say):
    if not PROGRAM.exists():
        raise BenchError(f'{PROGRAM} is not built: make build')
    runs = []
    for turn in range(REPEATS):
        say(f'walker, {turn + 1} of {REPEATS}')
        runs.append(measure())
    times = {way: spread([r[f'{way}-ns-per-1000'] / 1000 for r in runs])
             for way in ('sync', 'last')}
    pages = spread([r['pages-per-1000'] for r in runs])
    return [{
        'title': 'pages marked by the last sync',
        'text': 'A ring with 1,000 posted buffers, against every page of a '
                '256 MiB guest.  The walker without its traps, and the dirty '
                'bitmap of the test.',
        'ways': ['type1', 'walker'],
        'rows': [{'case': 'pages', 'unit': 'pages',
                  'values': {'type1': spread([GUEST_PAGES]), 'walker': pages},
                  'ratio': pages['median'] / GUEST_PAGES}],
    }, {
        'title': 'time of a sync, 1,000 posted buffers',
        'text': 'The walker over synthetic rings; the last sync marks all '
                'buffers, the others what was received.',
        'ways': ['sync', 'last'],
        'rows': [{'case': 'time', 'unit': 'us', 'values': times,
                  'ratio': times['last']['median']
                  / times['sync']['median']}],
    }]


# ------------------------------------------------------------------------ lab

def last_words(guest):
    """Return what a guest, its card and its QEMU said last."""
    try:
        said = guest.lab.attempt(f'tail -n 20 {guest.qemu_log}', 10)[1]
        alive = guest.alive()
    except LabHung as hung:
        said, alive = f'(the emulated host: {hung})', 'unknown'
    return (f'  {guest.name}: its QEMU is alive: {alive}; results '
            f'{guest.results}, at {guest.parked}\n'
            f'  last lines of its console:\n{console_tail(guest.console)}\n'
            f'  its QEMU said:\n{said}')


@contextlib.contextmanager
def reported(*guests):
    """Add to an error what each of the guests said last."""
    try:
        yield
    except (GuestFailure, BenchError) as err:
        words = '\n'.join(map(last_words, guests))
        raise GuestFailure(f'{err}\n{words}') from None


def twice(lab, name, say, measurement):
    """Return measurement(NAME); once more if a guest or the host is lost.

    docs/lab.rst: both happen now and then.  What was said is printed and kept.
    """
    for number in range(2):
        try:
            return measurement(name + 'again' * number)
        except GuestFailure as err:
            why = f'a guest was lost: {err}'
        except LabHung as hung:
            why = (f'the emulated host hung: {hung}\n'
                   + console_tail(lab.folder / 'console.log'))
            lab.note_retry(str(hung))
            lab.__enter__()
            serve(lab)
        kept = lab.folder / f'lost-{name}-{number}.log'
        kept.write_text(f'{why}\n')
        say(f'{name}: {why}\n  kept in {kept}')
    raise BenchError(f'{name}: failed twice, see above')


def wait_completed(guest):
    while True:
        state = guest.vm.cmd('query-migrate')
        if state['status'] == 'completed':
            return state
        if state['status'] in ('failed', 'cancelled'):
            raise BenchError(f'migration: {state}')
        guest.check_time('migration')
        time.sleep(0.2)


def stamp(line):
    """The time in a line of a trace, in seconds."""
    at = re.search(r'\b(\d+-\d+-\d+T\d+:\d+:\d+)(\.\d+)?Z', line)
    if not at:
        raise BenchError(f'no time in "{line}"')
    whole = calendar.timegm(time.strptime(at[1], '%Y-%m-%dT%H:%M:%S'))
    return whole + float(at[2] or 0)


def clock_offset(lab):
    """Return by how much the emulated host's clock is behind."""
    second = lab.run('x=$(date +%s)\n'
                     'while y=$(date +%s); [ $x = $y ]; do :; done; echo $y')
    return time.time() - float(second)


def vf_address(lab, index):
    return lab.run(f'a=$(make_vfs 2 | sed -n {index + 1}p); to_vfio $a; '
                   'echo $a')


def serve(lab):
    lab.run('mkdir -p /tmp/srv; head -c 4096k /dev/urandom >/tmp/srv/down\n'
            'httpd -p 10.2.0.1:8002 -h /tmp/srv')


def gap(lab, unplug, name):
    """Return the seconds that a guest is without its card, and all of them."""
    first, second = vf_address(lab, 0), vf_address(lab, 1)

    def card(address):
        return (f'vfio-pci,host={address},romfile=,id=fast,bus=rp2,'
                'failover_pair_id=net1,write-tracking=igb')
    script = FAST + FILL + WATCH + 'park ready\nwait $watcher\n'
    options = {'args': ARGS, 'mem': f'{BIG_MIB}M', 'timeout': LIMIT_S}
    with lab.guest(f'{name}s', script,
                   devices=[*PORTS, standby(unplug), card(first)],
                   **options) as source:
        source.wait_parked('ready')
        source.resume()
        with lab.guest(f'{name}t', None, devices=[
                *PORTS, standby(unplug), card(second)], **{
                    **options, 'args': [*ARGS, '-incoming', 'unix:/tmp/wt']
                }) as target, reported(source, target):
            source.limit(LIMIT_S)
            source.vm.cmd('migrate-set-parameters', **{
                'max-bandwidth': BANDWIDTH, 'downtime-limit': 1000})
            source.vm.cmd('migrate', uri='unix:/tmp/wt')
            state = wait_completed(source)
            target.limit(LIMIT_S)
            back = target.wait_result('back')
            gone = target.wait_result('gone')
    # the guest's clock stands while it is stopped
    return (float(back) - float(gone) + state['downtime'] / 1000,
            state['total-time'] / 1000)


def gaps(say):
    times = {'early': [], 'late': []}
    total = {'early': [], 'late': []}
    with Lab('bench-gap', mem='4G', say=say) as lab:
        serve(lab)
        for number in range(LAB_PAIRS):
            for unplug in times:
                seconds, whole = twice(
                    lab, f'{unplug}{number}', say,
                    lambda name, unplug=unplug: gap(lab, unplug, name))
                say(f'{unplug} {number + 1} of {LAB_PAIRS}: without the card '
                    f'for {seconds:.1f} s of {whole:.1f} s')
                times[unplug].append(seconds)
                total[unplug].append(whole)
    values = {way: spread(v) for way, v in times.items()}
    return [{
        'title': 'time without the fast card',
        'text': f'A guest of {BIG_MIB} MiB with {BALLAST * 64} MiB in use and '
                'a writer of 4 MiB/s, which receives by a virtual function of '
                f'an igb; {BANDWIDTH >> 20} MiB/s for the migration; from '
                'the end of its card on the source to its appearance on the '
                'destination.  The migration took '
                f'{spread(total["early"])["median"]:.0f} s early, '
                f'{spread(total["late"])["median"]:.0f} s late.',
        'ways': ['early', 'late'],
        'rows': [{'case': 'gap', 'unit': 's', 'values': values,
                  'ratio': values['late']['median']
                  / values['early']['median']}],
    }]


def true_pages(lab, limit):
    """Return [(time, pages)] of what the emulated card wrote below @limit."""
    found = []
    text = (lab.folder / 'cpu.log').read_text(errors='replace')
    for line in text.splitlines():
        m = re.search(r'igb_rx_desc_buff_write buffer \d+, '
                      r'addr: 0x([0-9a-f]+), offset: (\d+), from: \S+ '
                      r'length: (\d+)', line)
        if m:
            start = int(m[1], 16) + int(m[2])
            if start < limit and int(m[3]):
                found.append((stamp(line), range(
                    start // PAGE, (start + int(m[3]) - 1) // PAGE + 1)))
    return found


def compare(syncs, truth, offset):
    """Return (marked, written) of the syncs without the first and the last.

    @offset: of the emulated host's clock to that of the machine
    """
    marked = written = 0
    for (before, _), (at, pages) in zip(syncs[:-2], syncs[1:-1]):
        seen = set()
        for when, numbers in truth:
            if before + offset <= when < at + offset:
                seen.update(numbers)
        marked += pages
        written += len(seen)
    return marked, written


def wait_syncs(guest):
    """Let some syncs pass, however slow the machine is; return the figures."""
    while True:
        time.sleep(20)
        info, = guest.vm.cmd('query-write-tracking')
        if info['syncs'] >= SYNCS:
            return info
        guest.check_time('syncs')


def observe(lab, name):
    """Receive while a migration runs; return (traps/s, syncs, clock offset)."""
    card = (f'vfio-pci,host={vf_address(lab, 0)},romfile=,id=fast,bus=rp2,'
            'failover_pair_id=net1,write-tracking=igb')
    with lab.guest(name, FAST + 'park ready\nsleep 900\n', timeout=600,
                   devices=[*PORTS, standby('late'), card], args=ARGS,
                   log='write_track_sync,write_track_start') as guest:
        guest.wait_parked('ready')
        guest.resume()
        offset = clock_offset(lab)
        guest.vm.cmd('migrate-set-parameters', **{
            'max-bandwidth': 6 << 20, 'downtime-limit': 1})
        start = time.monotonic()
        guest.vm.cmd('migrate', uri='exec:cat >/dev/null')
        info = wait_syncs(guest)
        rate = info['traps'] / (time.monotonic() - start)
        guest.vm.cmd('migrate_cancel')
        lines = guest.trace('write_track_sync')
    return rate, [(stamp(line), int(re.search(r'pages (\d+)', line)[1]))
                  for line in lines], offset


def precision(say):
    """Marked against written pages."""
    runs, rates = [], []
    with Lab('bench-precision', say=say, extra=[
            '-trace', 'igb_rx_desc_buff_write',
            '-msg', 'timestamp=on']) as lab:
        serve(lab)
        for number in range(LAB_PAIRS):
            rate, syncs, offset = twice(lab, f'precise{number}', say,
                                        lambda name: observe(lab, name))
            rates.append(rate)
            marked, written = compare(syncs, true_pages(lab, 256 << 20),
                                      offset)
            if not written:
                raise BenchError('the card wrote nothing between the syncs')
            say(f'{len(syncs)} syncs, marked {marked} pages, '
                f'written {written}, {rate:.0f} traps/s')
            runs.append(marked / written)
    return [{
        'title': 'pages marked for each page written',
        'text': 'A guest of 256 MiB receives by a virtual function while a '
                'migration runs; what the emulated card wrote between two '
                'syncs, by its trace, is 1.',
        'ways': ['written', 'walker'],
        'rows': [{'case': 'pages', 'unit': 'x', 'values': {
            'written': spread([1.0]), 'walker': spread(runs)},
            'ratio': spread(runs)['median']}],
    }, {
        'title': 'traps of the walker',
        'text': 'The same; accesses of the guest that trap, in a second.',
        'ways': ['walker'],
        'rows': [{'case': 'traps', 'unit': '/s',
                  'values': {'walker': spread(rates)}, 'ratio': 1.0}],
    }]


def run(say):
    try:
        tables = [*rings(say), *precision(say), *gaps(say)]
    except LabError as err:
        raise BenchError(str(err)) from None
    return {
        'name': 'write_tracking',
        'title': 'Write tracking of assigned devices',
        'tables': tables,
    }
