# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupt affinity that follows the vCPU, off against on, in the lab.

Everything is emulated: only counts and their ratios mean anything.
"""
import re
import statistics
import sys
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

# One line for each stay of the vCPU on a processor: where, and how often each
# processor had taken the card's interrupts and rescheduling IPIs at its end.
MOVER = '''
irqs='%(irqs)s'
end=$(($(date +%%s) + %(seconds)d))
cpu=0
show()
{
    echo "$1 $(for i in $irqs; do cat /sys/kernel/irq/$i/per_cpu_count; done |
        tr '\\n' ' ') $(grep RES: /proc/interrupts)"
}
show -1
while [ $(date +%%s) -lt $end ]; do
    %(move)s
    usleep %(period_us)d
    show $cpu
    cpu=$(((cpu + 1) %% %(cpus)d))
done
'''


def parse(line):
    """Return (cpu, [interrupts by CPU], IPIs) of a line of MOVER."""
    head, _, res = line.partition(' RES: ')
    cpu, *lists = head.split()
    counts = [sum(column) for column in zip(*(
        map(int, text.split(',')) for text in lists))]
    return int(cpu), counts, sum(int(x) for x in res.split() if x.isdigit())


def figures(text):
    """Return figures of one phase; the first stay is left out."""
    rows = [parse(line) for line in text.splitlines()]
    if len(rows) < 4:
        raise BenchError(f'the vCPU moved {len(rows) - 1} times: {text}')
    local = total = 0
    for (_, before, _), (cpu, after, _) in zip(rows[1:], rows[2:]):
        local += after[cpu] - before[cpu]
        total += sum(after) - sum(before)
    if total < 100:
        raise BenchError(f'{total} interrupts: {text}')
    return {'local': 100 * local / total,
            'ipis': (rows[-1][2] - rows[1][2]) / total,
            'interrupts': total, 'stays': len(rows) - 2}


def use(guest, name):
    guest.vm.cmd('qom-set', path='/machine/peripheral/nic',
                 property='irq-affinity', value=name)


def phase(lab, guest, address, period_ms, move):
    irqs = ' '.join(map(str, lab.irqs(address)))
    thread, = guest.vcpu_threads()
    start = guest.vm.cmd('query-irq-affinity')[0]['moves']
    found = figures(lab.run(MOVER % {
        'irqs': irqs, 'seconds': PHASE_S, 'cpus': CPUS,
        'period_us': period_ms * 1000,
        'move': f'taskset -p $(printf %x $((1 << cpu))) {thread} '
                '>/dev/null' if move else
                f'cpu=$(sed "s/.*) //" /proc/{guest.pid}/task/{thread}/stat '
                '| cut -d" " -f37)'},
        limit_s=60))
    found['moves'] = (guest.vm.cmd('query-irq-affinity')[0]['moves']
                      - start) / PHASE_S
    return found


def idle(lab, guest):
    """Return wake-ups of the object in ten quiet seconds."""
    start = guest.vm.cmd('query-irq-affinity')[0]['wake-ups']
    time.sleep(10)
    return guest.vm.cmd('query-irq-affinity')[0]['wake-ups'] - start


def decisions(guest):
    """Return times from a notice to the last move it led to, in ms."""
    found, noticed, last = [], None, None
    for line in guest.log_text().splitlines():
        match = re.match(r'\d+@(\d+\.\d+):(irq_affinity_(?:vcpu|move)) ', line)
        if not match:
            continue
        at = float(match.group(1)) * 1000
        if match.group(2).endswith('vcpu'):
            if noticed and last:
                found.append(last - noticed)
            noticed, last = at, None
        else:
            last = at
    return found


def measure(say):
    """Return {(case, way): [figures]}, wake-ups when idle, decision times."""
    found = {}
    with Lab('bench-irq-affinity', smp=CPUS, say=say) as lab:
        address = lab.run('a=$(make_vfs 2 | head -n 1); to_vfio $a; echo $a')
        with lab.guest(
                'bench', GUEST + 'park ready', timeout=900,
                log='irq_affinity_*',
                devices=[f'vfio-pci,id=nic,host={address},romfile=,'
                         'irq-affinity=follow'],
                args=['-object', 'irq-affinity,id=follow']) as guest:
            guest.wait_parked('ready')
            ping = lab.run('ping -A -q 10.2.0.2 >/dev/null & echo $!')
            for repeat in range(REPEATS):
                for period_ms in PERIODS_MS:
                    for way in 'off', 'on':
                        use(guest, 'follow' if way == 'on' else '')
                        figure = phase(lab, guest, address, period_ms, True)
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
                    figure = phase(lab, guest, address, 200, False)
                    found.setdefault(('floating, all CPUs busy', way),
                                     []).append(figure)
                    say(f'{repeat} floating {way}: {figure}')
            lab.run('kill $(cat /tmp/busy)')
            lab.run(f'kill {ping}')
            time.sleep(3)
            return found, idle(lab, guest), decisions(guest)


def run(say):
    found, wake_ups, times = measure(say)
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
    if times:
        tables[0]['text'] += (
            '  From the notice of a moved vCPU to the last of its interrupts '
            f'being moved: median {statistics.median(times):.2f} ms of '
            f'{len(times)}.')
    return {'name': 'irq-affinity',
            'title': 'Interrupt affinity that follows the vCPU',
            'tables': tables}
