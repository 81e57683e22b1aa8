# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts of an assigned card follow the vCPU: real KVM, VFIO, IRQs."""
import re
import time
import unittest

import labtest
import traffic
from traffic import TRAFFIC

# counts of the guest; the name of the card's interrupts begins with its own
GUEST = TRAFFIC + '''
counts()
{
    grep "$(card igbvf)" /proc/interrupts |
        awk '{ for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) n += $i }
             END { print n + 0 }'
}

# quiet: no more interrupts that were sent before
quiet()
{
    before=
    while [ "$(counts)" != "$before" ]; do before=$(counts); sleep 1; done
}

up igbvf 2 || exit 1
# a virtual function has a new Ethernet address in each guest: tell it
ping -c 1 10.2.0.1 >/dev/null || exit 9
'''
# a second guest that has a card, without address
OTHER = TRAFFIC + '''
while [ -z "$(card igbvf)" ]; do usleep 100000; done
ip link set $(card igbvf) up
park ready
'''
HELPER = '/tmp/helper.sock'
LIMIT_S = 20


def refused(info):
    return {r['reason']: r['count'] for r in info['refusals']}


class IrqAffinityTest(traffic.TrafficTest):
    """A guest with a virtual function that follows."""
    ping = None

    def guest(self, name, script, more='', args=(), timeout=170,
              follow=True):
        self.address = self.vf()
        return self.lab.guest(
            name, GUEST + script, timeout=timeout,
            log='irq_affinity_*',
            devices=[f'vfio-pci,id=nic,host={self.address},romfile='
                     + (',irq-affinity=follow' if follow else '')],
            args=['-object', f'irq-affinity,id=follow{more}', *args])

    def start(self, guest):
        """Ping the guest, each time as soon as it has answered.

        The kernel answers.  Nothing else runs there while its vCPU is moved:
        the emulation of SVM loses a program of a guest now and then.
        """
        guest.wait_parked('ready')
        self.ping = self.lab.run(
            'ping -A -q 10.2.0.2 >/tmp/ping.log 2>&1 & echo $!')
        self.addCleanup(self.stop, False)

    def stop(self, check=True):
        """End the pings; return how many were sent, all answered."""
        if not self.ping:
            return 0
        text = self.lab.run(f'''
            kill -INT {self.ping}
            while kill -0 {self.ping} 2>/dev/null; do usleep 50000; done
            cat /tmp/ping.log
        ''')
        self.ping = None
        sent, received = map(int, re.search(
            r'(\d+) packets transmitted, (\d+) packets received',
            text).groups())
        if check:
            # the last one may be on its way
            self.assertLessEqual(sent - received, 1, text)
            self.assertGreater(sent, 0, text)
        return sent

    def end(self, guest):
        """Check the pings, let the guest end."""
        self.stop()
        guest.resume()
        guest.finish()

    def info(self, guest):
        info, = guest.vm.cmd('query-irq-affinity')
        return info

    def wait(self, guest, check, what):
        """Return the first answer to the query that @check is true for."""
        end = time.monotonic() + LIMIT_S
        while True:
            info = self.info(guest)
            if check(info):
                return info
            if time.monotonic() > end:
                self.fail(f'not within {LIMIT_S} s: {what}: {info}\n'
                          + guest.log_text()[-3000:])
            time.sleep(0.1)

    def wait_sent(self, guest, cpu):
        """Wait until what counts goes to @cpu, and something does."""
        def check(info):
            places = {v.get('sent-to', v.get('taken-on'))
                      for v in info['vectors']
                      if v['state'] in ('following', 'behind')}
            return places == {cpu}
        return self.wait(guest, check, f'interrupts at CPU {cpu}')

    def use(self, guest, name):
        """Give the device another object, or none."""
        guest.vm.cmd('qom-set', path='/machine/peripheral/nic',
                     property='irq-affinity', value=name)

    def move(self, guest, cpu):
        self.lab.move_thread(guest.vcpu_threads()[0], cpu)

    def mask(self, irq):
        return self.lab.run(f'cat /proc/irq/{irq}/smp_affinity_list')

    def counts(self):
        """Return {cpu: interrupts} of the card."""
        sums = {}
        for counts in self.lab.interrupts_by_cpu(
                rf'vfio-msix?\[\d+\]\({self.address}\)').values():
            for cpu, count in counts.items():
                sums[cpu] = sums.get(cpu, 0) + count
        return sums


class Moves(IrqAffinityTest):

    def test_follow(self):
        """Interrupts go along, none is lost, and stay when all is quiet."""
        with self.guest('follow', '''
            quiet; result before $(counts); park ready
            quiet; result after $(counts); park done
        ''') as guest:
            guest.wait_parked('ready')
            before = sum(self.counts().values())
            self.start(guest)
            for i in range(12):
                self.move(guest, i & 1)
                self.wait_sent(guest, i & 1)
            at = self.counts()
            time.sleep(2)
            now = self.counts()
            here, other = now[1] - at[1], now[0] - at[0]
            sent = self.stop()
            guest.resume()
            guest.wait_parked('done')
            info = self.info(guest)
            after = sum(self.counts().values())
            time.sleep(2)
            rest = self.info(guest)
            guest.resume()
            results = guest.finish()
        self.assertGreater(sent, 100)
        self.assertGreaterEqual(here, 20 * other, (at, now))
        self.assertGreater(here, 20, (at, now))
        self.assertEqual([v['source'] for v in info['vcpus']], ['perf'])
        self.assertGreaterEqual(info['moves'], 11)
        self.assertEqual(info['refusals'], [])
        # Each ping is answered, though none is sent again, and each answer
        # takes an interrupt.  One that comes while the last has not been
        # delivered is merged with it, with and without moves.
        seen = int(results['after']) - int(results['before'])
        self.assertGreaterEqual(seen, sent - 1)
        self.assertGreaterEqual(after - before, seen)
        self.assertLessEqual(rest['wake-ups'] - info['wake-ups'], 3)

    @labtest.long_test('test_follow is run')
    def test_pessimistic(self):
        with self.guest('pessimistic', 'park ready', ',policy=pessimistic,'
                        'forward-threshold=4') as guest:
            self.start(guest)
            for i in range(4):
                self.move(guest, i & 1)
                info = self.wait_sent(guest, i & 1)
            self.assertGreater(sum(v['forwards'] for v in info['vectors']), 3)
            self.end(guest)

    @labtest.long_test('test_follow is run')
    def test_taken_off(self):
        """Without the policy, an interrupt is where it was before."""
        with self.guest('taken-off', 'park ready') as guest:
            self.start(guest)
            # it may have been moved already
            self.use(guest, '')
            masks = {irq: self.mask(irq) for irq in self.lab.irqs(
                self.address)}
            self.assertEqual(set(masks.values()), {'0-1'})
            self.use(guest, 'follow')
            for cpu in 0, 1:
                self.move(guest, cpu)
                info = self.wait_sent(guest, cpu)
            moved = [v['irq'] for v in info['vectors'] if v['moves']]
            self.assertTrue(moved)
            for irq in moved:
                self.assertEqual(self.mask(irq), '1')
            self.use(guest, '')
            self.assertEqual(masks, {irq: self.mask(irq) for irq in masks})
            self.assertEqual(self.info(guest)['vectors'], [])
            self.use(guest, 'follow')
            self.move(guest, 0)
            self.wait_sent(guest, 0)
            self.end(guest)

    @labtest.long_test('test_follow is run')
    def test_numbers_change(self):
        """Set up anew, they have others; an old number is somebody else's."""
        other = self.vf(1)
        with self.guest('numbers', '''
            park ready
            d=/sys/bus/pci/drivers/igbvf
            a=$(basename $(readlink /sys/class/net/$(card igbvf)/device))
            echo $a >$d/unbind; park unbound; echo $a >$d/bind
            up igbvf 2 || exit 3
            ping -c 1 10.2.0.1 >/dev/null || exit 9
            park bound
        ''') as guest:
            self.start(guest)
            self.move(guest, 1)
            self.wait_sent(guest, 1)
            self.stop()
            old = self.lab.irqs(self.address)
            guest.resume()
            guest.wait_parked('unbound')
            self.assertEqual(self.lab.irqs(self.address), [])
            with self.lab.guest('other', OTHER, devices=[
                    f'vfio-pci,host={other},romfile=']) as second:
                second.wait_parked('ready')
                taken = {irq: self.mask(irq) for irq in self.lab.irqs(other)
                         if irq in old}
                self.assertTrue(taken, old)
                guest.resume()
                guest.wait_parked('bound')
                self.start(guest)
                for i in range(4):
                    self.move(guest, i & 1)
                    info = self.wait_sent(guest, i & 1)
                new = {v['irq'] for v in info['vectors'] if 'irq' in v}
                self.assertEqual(new, set(self.lab.irqs(self.address)))
                self.assertFalse(new & set(taken), (new, taken))
                self.assertEqual({irq: self.mask(irq) for irq in taken},
                                 taken)
            self.end(guest)

    @labtest.long_test('test_follow is run')
    def test_cpu_goes(self):
        """Its processor goes offline, and comes back."""
        with self.guest('cpu-goes', 'park ready') as guest:
            self.start(guest)
            self.move(guest, 1)
            self.wait_sent(guest, 1)
            self.lab.run(f'taskset -p 3 {guest.vcpu_threads()[0]}')
            self.lab.online(1, False)
            try:
                self.wait_sent(guest, 0)
            finally:
                self.lab.online(1)
            self.move(guest, 1)
            self.wait_sent(guest, 1)
            info = self.info(guest)
            self.assertEqual(info['foreign'], 0, info)
            self.end(guest)

    @labtest.long_test('test_follow is run')
    def test_somebody_else(self):
        """What irqbalance does: left alone from then on."""
        with self.guest('somebody', 'park ready') as guest:
            self.start(guest)
            self.move(guest, 1)
            info = self.wait_sent(guest, 1)
            moved = [v['irq'] for v in info['vectors'] if v['moves']]
            for irq in moved:
                self.lab.move_irq(irq, 0)
            # away, and to where they are not
            self.move(guest, 0)
            time.sleep(1)
            self.move(guest, 1)
            self.wait(guest, lambda i: i['foreign'] > 0, 'foreign')
            self.assertEqual({self.mask(irq) for irq in moved}, {'0'})
            self.end(guest)

    @labtest.long_test('test_follow is run')
    def test_killed(self):
        """Nothing is left of a QEMU that was killed: its IRQs are gone."""
        script = 'park ready'
        with self.guest('killed', script) as guest:
            guest.wait_parked('ready')
            irqs = self.lab.irqs(self.address)
            self.start(guest)
            self.move(guest, 1)
            self.wait_sent(guest, 1)
            guest.kill()
            guest.wait_exit()
            self.lab.run(f'kill -INT {self.ping}')
            self.ping = None
            self.lab.run(f'[ ! -e /proc/irq/{irqs[0]}/vfio-* ]')
        with self.guest('after', 'park ready', follow=False) as guest:
            guest.wait_parked('ready')
            for irq in self.lab.irqs(self.address):
                self.assertEqual(self.mask(irq), '0-1')
            guest.resume()
            guest.finish()


@labtest.long_test('test_follow is run')
class Privilege(IrqAffinityTest):
    """QEMU without privilege, with and without helper."""
    user = ['-run-with', 'user=1000:1000']

    def start_helper(self, more=''):
        self.helper = self.lab.run(f'''
            qemu-irq-affinity-helper -k {HELPER} {more} >/tmp/helper.log 2>&1 &
            pid=$!; n=0
            while [ ! -S {HELPER} ]; do
                n=$((n + 1)); [ $n -lt 50 ] || exit 1; usleep 100000
            done
            chmod 666 {HELPER}; echo $pid
        ''')
        self.addCleanup(self.lab.attempt, f'kill {self.helper}')

    def stop_helper(self, signal='TERM'):
        # ended by TERM it removes the socket, and rm -f of busybox fails when
        # that comes between its look and its own removal
        self.lab.run(f'kill -{signal} {self.helper}\n'
                     f'while kill -0 {self.helper} 2>/dev/null; do '
                     f'usleep 20000; done; rm -f {HELPER}')

    def test_neither(self):
        """One clear line, and the guest runs on."""
        with self.guest('neither', 'park ready', args=self.user) as guest:
            self.start(guest)
            for i in range(4):
                self.move(guest, i & 1)
                time.sleep(1)
            info = self.wait(guest, lambda i: 'denied' in refused(i),
                             'denied')
            self.end(guest)
            log = guest.log_text()
        self.assertEqual([v['source'] for v in info['vcpus']], ['sample'])
        self.assertEqual(info['moves'], 0)
        lines = [line for line in log.splitlines()
                 if re.search('warning|error', line)]
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("irq-affinity 'follow': interrupts stay where they are: "
                      'no helper is set, and QEMU may not write', lines[0])

    def test_helper(self):
        """It moves, and opens the events; killed, it is missed; it returns."""
        self.start_helper()
        with self.guest('helper', 'park ready', f',helper={HELPER}',
                        self.user) as guest:
            self.start(guest)
            for i in range(4):
                self.move(guest, i & 1)
                info = self.wait_sent(guest, i & 1)
            self.assertTrue(info['helper'])
            self.assertEqual([v['source'] for v in info['vcpus']], ['perf'])
            self.assertEqual(info['refusals'], [])

            self.stop_helper('KILL')
            self.move(guest, 0)
            self.wait(guest, lambda i: not i['helper'] and
                      'no-helper' in refused(i), 'no helper')
            self.start_helper()
            self.wait_sent(guest, 0)
            self.move(guest, 1)
            info = self.wait_sent(guest, 1)
            self.assertTrue(info['helper'])

            moved = [v['irq'] for v in info['vectors'] if v['moves']]
            self.use(guest, '')
            end = time.monotonic() + LIMIT_S
            while {self.mask(irq) for irq in moved} == {'1'}:
                self.assertLess(time.monotonic(), end, 'not restored')
            self.end(guest)
        self.stop_helper()

    def test_event_kept(self):
        """The guest gives up its interrupts again and again: one event."""
        self.start_helper()
        script = '''
            park ready; i=0; driver=/sys/bus/pci/drivers/igbvf
            nic=$(basename $(readlink /sys/class/net/$(card igbvf)/device))
            while [ $i -lt 4 ]; do
                echo $nic >$driver/unbind; sleep 1; echo $nic >$driver/bind
                up igbvf 2 || exit 3
                sleep 1; i=$((i + 1))
            done
            park done
        '''
        with self.guest('event', script, f',helper={HELPER}',
                        self.user) as guest:
            guest.wait_parked('ready')
            self.wait(guest, lambda i: [v['source'] for v in i['vcpus']] ==
                      ['perf'], 'event')
            guest.resume()
            guest.wait_parked('done')
            info = self.wait(guest, lambda i: i['vcpus'], 'vCPU')
            log = guest.log_text()
            guest.resume()
            guest.finish()
        self.assertEqual(info['vcpus'][0]['source'], 'perf')
        lost = re.findall('irq_affinity_irq', log)
        self.assertGreater(len(lost), 4, log[-3000:])
        self.assertEqual(len(re.findall('irq_affinity_follow.*perf', log)), 1,
                         log[-3000:])
        self.stop_helper()

    def test_processors(self):
        """The administrator's list holds; QEMU is told, and runs on."""
        self.start_helper('--cpus=0')
        with self.guest('processors', 'park ready', f',helper={HELPER}',
                        self.user) as guest:
            self.start(guest)
            self.move(guest, 1)
            self.wait(guest, lambda i: 'denied' in refused(i), 'denied')
            self.move(guest, 0)
            self.end(guest)
            for irq in self.lab.irqs(self.address):
                self.assertNotEqual(self.mask(irq), '1')
        self.stop_helper()


if __name__ == '__main__':
    unittest.main()
