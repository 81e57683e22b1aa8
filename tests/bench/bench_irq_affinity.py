# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupt affinity that follows the vCPU, off against on, in the lab.

Everything is emulated: only counts and their ratios mean anything.
"""
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from callgrind import BenchError
from report import spread

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'lab'))

from lab import Lab                                         # noqa: E402
from test_irq_affinity import GUEST                         # noqa: E402

CPUS = 4
PHASE_S = 6
REPEATS = 3
PERIODS_MS = (1000, 200, 50)

SOURCE = Path(__file__).with_name('irq_mover.c')


def put_mover(lab):
    """Compile irq_mover.c and bring it into the emulated host."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / 'irq_mover'
        subprocess.run(['gcc', '-O2', '-static', '-s', '-o', str(program),
                        str(SOURCE)], check=True)
        lab.put('/tmp/irq_mover', program.read_bytes())
    lab.run('chmod +x /tmp/irq_mover')


def use(guest, name):
    guest.vm.cmd('qom-set', path='/machine/peripheral/nic',
                 property='irq-affinity', value=name)


def phase(lab, guest, address, period_ms):
    """Return figures of one phase; its first stay is left out.

    @period_ms: of moves; 0: the scheduler moves
    """
    irqs = ' '.join(map(str, lab.irqs(address)))
    thread, = guest.vcpu_threads()
    start = guest.vm.cmd('query-irq-affinity')[0]['moves']
    total, local, ipis, stays, time_us = map(int, lab.run(
        f'/tmp/irq_mover {guest.pid} {thread} {CPUS} {period_ms} {PHASE_S} '
        f'{irqs}', limit_s=60).split())
    if total < 100:
        raise BenchError(f'only {total} interrupts in {PHASE_S} s')
    moves = guest.vm.cmd('query-irq-affinity')[0]['moves'] - start
    return {'local': 100 * local / total, 'ipis': ipis / total,
            'time': time_us / 1000, 'moves': moves / PHASE_S,
            'interrupts': total, 'stays': stays}


def idle(guest):
    """Return wake-ups of the object in ten quiet seconds."""
    start = guest.vm.cmd('query-irq-affinity')[0]['wake-ups']
    time.sleep(10)
    return guest.vm.cmd('query-irq-affinity')[0]['wake-ups'] - start


def measure(say):
    """Return {(case, way): [figures]}, wake-ups when idle."""
    found = {}
    with Lab('bench-irq-affinity', smp=CPUS, say=say) as lab:
        address = lab.run('a=$(make_vfs 2 | head -n 1); to_vfio $a; echo $a')
        with lab.guest(
                'bench', GUEST + 'park ready', timeout=900,
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
            mask = f'{(1 << CPUS) - 1:x}'
            lab.run(f'taskset -p {mask} {guest.vcpu_threads()[0]}')
            lab.run(f'for i in $(seq {CPUS}); do (while :; do :; done) & '
                    'echo $!; done >/tmp/busy')
            for repeat in range(REPEATS):
                for way in 'off', 'on':
                    use(guest, 'follow' if way == 'on' else '')
                    figure = phase(lab, guest, address, 0)
                    found.setdefault(('floating, all CPUs busy', way),
                                     []).append(figure)
                    say(f'{repeat} floating {way}: {figure}')
            lab.run('kill $(cat /tmp/busy)')
            lab.run(f'kill {ping}')
            time.sleep(3)
            return found, idle(guest)


def run(say):
    found, wake_ups = measure(say)
    tables = []
    for key, unit, title in (
            ('local', '%', 'Interrupts taken on the vCPU\'s processor'),
            ('ipis', 'per interrupt', 'Rescheduling IPIs')):
        rows = []
        for case in dict.fromkeys(c for c, _ in found):
            values = {way: spread([f[key] for f in found[case, way]])
                      for way in ('off', 'on')}
            rows.append({'case': case, 'unit': unit, 'values': values,
                         'ratio': values['on']['median']
                         / max(values['off']['median'], 0.001)})
        tables.append({'title': title, 'text': '', 'ways': ['off', 'on'],
                       'rows': rows})
    most = max(f['moves'] for key, fs in found.items() for f in fs
               if key[1] == 'on')
    tables[0]['text'] = (
        f'At most {most:.0f} interrupts moved per second.  Idle: {wake_ups} '
        'wake-ups of the object in 10 s.')
    times = {case: statistics.median(f['time'] for f in fs)
             for (case, way), fs in found.items()
             if way == 'on' and 'moved' in case}
    tables[0]['text'] += (
        '  From a move to the first interrupt on the new processor, medians: '
        + ', '.join(f'{case}: {ms:.1f} ms' for case, ms in times.items())
        + '.')
    return {'name': 'irq-affinity',
            'title': 'Interrupt affinity that follows the vCPU',
            'tables': tables}
