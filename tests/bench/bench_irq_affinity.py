# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupt affinity that follows the vCPU, off against on, in the lab.

Everything is emulated: only counts and their ratios mean anything.
"""
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'lab'))

from hotpath_paths import BUILD, SetupError                 # noqa: E402
from image import needed_libraries                          # noqa: E402
from lab import Lab                                         # noqa: E402
from test_irq_affinity import GUEST                         # noqa: E402

CPUS = 4
PHASE_S = 6
FEW = 100               # interrupts of a phase, of which no share is told
REPEATS = 3
PERIODS_MS = (1000, 200, 50)
# before a look at what is idle: a quiet interrupt follows its vCPU once more
REST_S = 5
# irqbalance looks every ten seconds
LONG_PHASE_S = 60
FLOATING = 'floating, all CPUs busy'
LONG_CASES = (('moved every 200 ms', 200), (FLOATING, 0))

SOURCE = Path(__file__).with_name('irq_mover.c')


def put_mover(lab):
    """Compile irq_mover.c and bring it into the emulated host."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / 'irq_mover'
        subprocess.run(['gcc', '-O2', '-static', '-s', '-o', str(program),
                        str(SOURCE)], check=True)
        lab.put('/tmp/irq_mover', program.read_bytes())
    lab.run('chmod +x /tmp/irq_mover')


def find_irqbalance(say):
    """Return the program, or None.

    It is unpacked and not installed: its package starts it on this machine.
    """
    installed = shutil.which('irqbalance') or shutil.which(
        'irqbalance', path='/usr/sbin:/sbin')
    if installed:
        return Path(installed)
    folder = BUILD / 'bench' / 'irqbalance'
    program = folder / 'usr' / 'sbin' / 'irqbalance'
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not program.is_file():
            subprocess.run(['apt-get', '-q', 'download', 'irqbalance'],
                           cwd=folder, check=True, capture_output=True,
                           timeout=120)
            package, = folder.glob('irqbalance_*.deb')
            subprocess.run(['dpkg', '-x', str(package), str(folder)],
                           check=True)
        needed_libraries(program)
    except (OSError, ValueError, SetupError, subprocess.SubprocessError) as err:
        say(f'no comparison with irqbalance: {err}')
        return None
    return program


def put_irqbalance(lab, program):
    """Bring it into the emulated host, with libraries that are not there."""
    lab.put('/tmp/irqbalance', program.read_bytes())
    for name, path in needed_libraries(program).items():
        if lab.attempt(f'[ -e /{name} ]')[0]:
            lab.put(f'/{name}', path.read_bytes())
    lab.run('chmod +x /tmp/irqbalance; mkdir -p /run/irqbalance')


def use(guest, name):
    guest.vm.cmd('qom-set', path='/machine/peripheral/nic',
                 property='irq-affinity', value=name)


def phase(lab, guest, address, period_ms, seconds=PHASE_S):
    """Return figures of one phase; its first stay is left out.

    @period_ms: of moves; 0: the scheduler moves
    """
    irqs = ' '.join(map(str, lab.irqs(address)))
    thread, = guest.vcpu_threads()
    start = guest.vm.cmd('query-irq-affinity')[0]['moves']
    total, local, ipis, stays, time_us = map(int, lab.run(
        f'/tmp/irq_mover {guest.pid} {thread} {CPUS} {period_ms} {seconds} '
        f'{irqs}', limit_s=seconds + 60).split())
    moves = guest.vm.cmd('query-irq-affinity')[0]['moves'] - start
    few = total < FEW           # no share of these says anything
    return {'local': None if few else 100 * local / total,
            'ipis': None if few else ipis / total,
            'time': time_us / 1000, 'moves': moves / seconds,
            'interrupts': total, 'stays': stays}


def idle(guest):
    """Return wake-ups of the object in ten quiet seconds."""
    start = guest.vm.cmd('query-irq-affinity')[0]['wake-ups']
    time.sleep(10)
    return guest.vm.cmd('query-irq-affinity')[0]['wake-ups'] - start


def float_free(lab, guest):
    """Let the scheduler move the vCPU."""
    lab.run(f'taskset -p {(1 << CPUS) - 1:x} {guest.vcpu_threads()[0]}')


def busy(lab, on):
    """Keep all processors busy, or no more."""
    if on:
        lab.run(f'for i in $(seq {CPUS}); do (while :; do :; done) & '
                'echo $!; done >/tmp/busy')
    else:
        lab.run('kill $(cat /tmp/busy)')


def masks(lab, address):
    """Return the processors to which each interrupt may go."""
    return [lab.run(f'cat /proc/irq/{n}/smp_affinity_list')
            for n in lab.irqs(address)]


def compare(lab, guest, address, say):
    """Return {(case, way): [figure]} of long phases, with irqbalance too."""
    found = {}
    program = find_irqbalance(say)
    if not program:
        return found
    put_irqbalance(lab, program)
    for case, period_ms in LONG_CASES:
        if not period_ms:
            float_free(lab, guest)
            busy(lab, True)
        for way in 'off', 'irqbalance', 'on':
            use(guest, 'follow' if way == 'on' else '')
            if way == 'irqbalance':
                before = masks(lab, address)
                pid = lab.run('/tmp/irqbalance --foreground --interval=10 '
                              '>/tmp/irqbalance.log 2>&1 & echo $!')
            figure = phase(lab, guest, address, period_ms, LONG_PHASE_S)
            if way == 'irqbalance':
                # fails if it has ended by itself
                lab.run(f'kill {pid}')
                say(f'before irqbalance {before}, after it '
                    f'{masks(lab, address)}; it said: '
                    + lab.run('cat /tmp/irqbalance.log'))
            found[case, way] = [figure]
            say(f'{LONG_PHASE_S} s {case} {way}: {figure}')
        if not period_ms:
            busy(lab, False)
    return found


def measure(say):
    """Return {(case, way): [figures]}, the same of long phases, and wake-ups
    when idle."""
    found = {}
    with Lab('bench-irq-affinity', smp=CPUS, say=say) as lab:
        address = lab.run('a=$(make_vfs 2 | head -n 1); to_vfio $a; echo $a')
        with lab.guest(
                'bench', GUEST + 'park ready', timeout=1800,
                log='irq_affinity_*',
                devices=[f'vfio-pci,id=nic,host={address},romfile=,'
                         'irq-affinity=follow'],
                args=['-object', 'irq-affinity,id=follow']) as guest:
            put_mover(lab)
            guest.wait_parked('ready')
            ping = lab.run('ping -A -q 10.2.0.2 >/dev/null & echo $!')
            for repeat in range(REPEATS):
                for period_ms in PERIODS_MS:
                    for way in 'off', 'on':
                        use(guest, 'follow' if way == 'on' else '')
                        figure = phase(lab, guest, address, period_ms)
                        found.setdefault((f'moved every {period_ms} ms', way),
                                         []).append(figure)
                        say(f'{repeat} {period_ms} ms {way}: {figure}')
            float_free(lab, guest)
            busy(lab, True)
            for repeat in range(REPEATS):
                for way in 'off', 'on':
                    use(guest, 'follow' if way == 'on' else '')
                    figure = phase(lab, guest, address, 0)
                    found.setdefault((FLOATING, way), []).append(figure)
                    say(f'{repeat} floating {way}: {figure}')
            busy(lab, False)
            long = compare(lab, guest, address, say)
            lab.run(f'kill {ping}')
            time.sleep(REST_S)
            return found, long, idle(guest)


def row_of(found, case, key, unit, ways, below):
    """Return a row of a table: the last way's ratio to @below.

    A way with a phase of too few interrupts has no value, the case says so.
    """
    figures = {way: [f[key] for f in found[case, way]] for way in ways}
    few = [way for way in ways if None in figures[way]]
    values = {way: spread(figures[way]) for way in ways if way not in few}
    if few:
        case += f" (too few interrupts: {', '.join(few)})"
    ratio = (values[ways[-1]]['median'] / max(values[below]['median'], 0.001)
             if ways[-1] in values and below in values else None)
    return {'case': case, 'unit': unit, 'values': values, 'ratio': ratio}


def long_table(found):
    ways = ['off', 'irqbalance', 'on']
    rows = [row_of(found, case, key, unit, ways, 'irqbalance')
            for case in dict.fromkeys(c for c, _ in found)
            for key, unit in (('local', '%'), ('ipis', 'IPIs per interrupt'))]
    return {'title': f'Against irqbalance, {LONG_PHASE_S} s each',
            'text': 'Interrupts taken on the vCPU\'s processor, and '
                    'rescheduling IPIs; the ratio is that of on to '
                    'irqbalance.',
            'ways': ways, 'rows': rows}


def run(say):
    found, long, wake_ups = measure(say)
    tables = []
    for key, unit, title in (
            ('local', '%', 'Interrupts taken on the vCPU\'s processor'),
            ('ipis', 'per interrupt', 'Rescheduling IPIs')):
        rows = [row_of(found, case, key, unit, ['off', 'on'], 'off')
                for case in dict.fromkeys(c for c, _ in found)]
        tables.append({'title': title, 'text': '', 'ways': ['off', 'on'],
                       'rows': rows})
    most = max(f['moves'] for key, fs in found.items() for f in fs
               if key[1] == 'on')
    tables[0]['text'] = (
        f'At most {most:.0f} interrupts moved per second.  Idle for '
        f'{REST_S} s: {wake_ups} wake-ups of the object in 10 s.')
    times = {case: statistics.median(f['time'] for f in fs)
             for (case, way), fs in found.items()
             if way == 'on' and 'moved' in case}
    tables[0]['text'] += (
        '  From a move to the first interrupt on the new processor, medians: '
        + ', '.join(f'{case}: {ms:.1f} ms' for case, ms in times.items())
        + '.')
    if long:
        tables.append(long_table(long))
    return {'name': 'irq-affinity',
            'title': 'Interrupt affinity that follows the vCPU',
            'tables': tables}
