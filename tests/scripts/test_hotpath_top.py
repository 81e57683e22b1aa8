# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/hotpath-top: names, rates and lines, from values made up here."""
import curses
import shutil
import socket
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from as_module import load

top = load('hotpath-top')


class FakeVm:
    """A VM that answers with what it was told, a sample after the other."""

    def __init__(self, name, *samples):
        self.name, self.source = name, f'/{name}'
        self.samples = list(samples)
        self.closed = False

    def command(self, command, **arguments):
        if command == 'query-cpus-fast':
            return [{'qom-path': f'/cpu{i}', 'cpu-index': i} for i in (0, 1)]
        if not self.samples:
            raise top.TopError('it ended')
        values = self.samples[0]
        if command == 'query-stats-schemas':
            return [{'target': 'vm', 'stats': [
                        {'name': 'zpipe-kicks', 'type': 'cumulative'},
                        {'name': 'zpipe-links', 'type': 'instant'},
                        {'name': 'on-demand-max-ns', 'type': 'peak'}]},
                    {'target': 'vcpu', 'stats': [
                        {'name': 'addr-hint-hits', 'type': 'cumulative'}]}]
        if arguments['target'] == 'vm':
            return [{'stats': [{'name': n, 'value': v}
                               for n, v in values['vm'].items()]}]
        self.samples.pop(0)
        return [{'qom-path': path, 'stats': [{'name': 'addr-hint-hits',
                                              'value': value}]}
                for path, value in values['vcpu'].items()]

    def close(self):
        self.closed = True


class FutureVm(FakeVm):
    """A VM with statistics that this program was not written for."""

    def __init__(self):
        super().__init__('f')

    def command(self, command, **arguments):
        if command == 'query-stats-schemas':
            return [{'target': 'cryptodev', 'stats': [
                {'name': 'new-thing-sizes', 'type': 'log2-histogram'},
                {'name': 'new-thing-on', 'type': 'instant'}]}]
        if command == 'query-stats':
            assert arguments['target'] == 'cryptodev'
            return [{'qom-path': '/c', 'stats': [
                {'name': 'new-thing-sizes', 'value': [1, 0, 5]},
                {'name': 'new-thing-on', 'value': True},
                {'name': 'new-thing-not-in-the-schema', 'value': 3}]}]
        return []


def values(kicks, links=1, hits=(0, 0)):
    return {'vm': {'zpipe-kicks': kicks, 'zpipe-links': links,
                   'on-demand-max-ns': 7},
            'vcpu': {f'/cpu{i}': n for i, n in enumerate(hits)}}


class Numbers(unittest.TestCase):

    def two(self, *samples):
        """Return the state after two samples that lie two seconds apart."""
        vm = FakeVm('a', *samples)
        first = top.sample(vm)
        first.when_s -= 2
        second = top.sample(vm)
        before = first.when_s
        top.set_rates(second, first)
        self.assertAlmostEqual(second.interval_s, second.when_s - before)
        return second

    def test_rates(self):
        state = self.two(values(100, 5, (0, 10)), values(300, 4, (50, 10)))
        kicks = state.stats['vm', None, 'zpipe-kicks']
        self.assertAlmostEqual(kicks.rate, 100, places=1)
        self.assertIsNone(state.stats['vm', None, 'zpipe-links'].rate)
        self.assertIsNone(state.stats['vm', None, 'on-demand-max-ns'].rate)
        hits = top.total([s for s in state.stats.values()
                          if s.name == 'addr-hint-hits'])['addr-hint-hits']
        self.assertEqual(hits.value, 60)
        self.assertAlmostEqual(hits.rate, 25, places=1)

    def test_counter_goes_back(self):
        """A device that was removed takes its counts along: no rate."""
        state = self.two(values(100), values(40))
        self.assertIsNone(state.stats['vm', None, 'zpipe-kicks'].rate)

    def test_first_sample(self):
        state = top.sample(FakeVm('a', values(100)))
        self.assertIsNone(state.interval_s)
        self.assertTrue(all(s.rate is None for s in state.stats.values()))

    def test_mechanisms(self):
        of = top.mechanisms_of({'addr-hint-hits', 'addr-hint-window-hits',
                                'zpipe-kicks', 'zpipe-kicks-saved',
                                'ondemand-map-traps', 'odd'})
        self.assertEqual(of, {
            'addr-hint-hits': 'addr-hint',
            'addr-hint-window-hits': 'addr-hint', 'zpipe-kicks': 'zpipe',
            'zpipe-kicks-saved': 'zpipe', 'ondemand-map-traps':
            'ondemand-map', 'odd': 'odd'})

    def test_mechanisms_with_the_same_first_word(self):
        of = top.mechanisms_of({'write-tracking-traps', 'write-tracking-syncs',
                                'write-verify-time-ns', 'write-verify-missed',
                                'storage-held', 'storage-flush-failed'})
        self.assertEqual(of, {
            'write-tracking-traps': 'write-tracking',
            'write-tracking-syncs': 'write-tracking',
            'write-verify-time-ns': 'write-verify',
            'write-verify-missed': 'write-verify',
            'storage-held': 'storage', 'storage-flush-failed': 'storage'})

    def test_what_is_not_known_here(self):
        """Any target, any kind of value, any name is shown."""
        state = top.sample(FutureVm())
        self.assertEqual({(s.target, s.name): s.value
                          for s in state.stats.values()}, {
            ('cryptodev', 'new-thing-sizes'): 6,
            ('cryptodev', 'new-thing-on'): 1,
            ('cryptodev', 'new-thing-not-in-the-schema'): 3})
        self.assertEqual(list(top.by_mechanism(state)), ['new-thing'])

    def test_names_are_text(self):
        """What a VM calls itself or its statistics does not reach the
        terminal as it is."""
        self.assertEqual(top.printable('a\x1b[2Jb\nc\0'), 'a?[2Jb?c?')
        state = top.sample(FakeVm('a', {'vm': {'x-\x1b[0m': 1}, 'vcpu': {}}))
        self.assertEqual([s.name for s in state.stats.values()], ['x-?[0m'])

    def test_peak_of_vcpus(self):
        stats = [top.Stat('m-max', 'vcpu', f'/{i}', 'peak', i)
                 for i in (3, 9, 4)]
        self.assertEqual(top.total(stats)['m-max'].value, 9)

    def test_number(self):
        self.assertEqual([top.number(x) for x in
                          (None, 0, 1234567, 0.25, 12.6, 0.0)],
                         ['-', '0', '1,234,567', '0.2', '13', '0'])


def watch_of(*vms):
    """Return a watch of VMs that are there, after their first samples."""
    watch = top.Watch()
    for vm in vms:
        place = top.Place(vm.source, lambda limit_s=None, vm=vm: vm)
        place.try_open()
        watch.places[vm.source] = place
    return watch


class View(unittest.TestCase):

    def setUp(self):
        self.watch = watch_of(
            FakeVm('a', values(1), values(3, hits=(7, 8))),
            FakeVm('bb', values(5)))
        self.screen = top.Screen(self.watch.watched)

    def test_lines(self):
        lines, chosen = self.screen.lines(79)
        self.assertEqual(chosen, 1)
        self.assertEqual([x.split()[:2] for x in lines[1:]], [
            [vm, name] for vm in ('a', 'bb')
            for name in ('addr-hint', 'on-demand-max', 'zpipe')])
        for width in (1, 10, 20, 40, 200):
            for line in self.screen.lines(width)[0][1:]:
                self.assertLessEqual(len(line), max(width, 22))

    def test_keys(self):
        for key in (curses.KEY_DOWN, curses.KEY_DOWN, curses.KEY_UP,
                    curses.KEY_DOWN, 10):
            self.assertTrue(self.screen.key(key))
        self.assertEqual(self.screen.open, ('a', 'zpipe'))
        self.assertIn('kicks', self.screen.lines(79)[0][2])
        self.screen.key(127)
        self.assertIsNone(self.screen.open)
        for _ in range(20):
            self.screen.key(curses.KEY_DOWN)
        self.assertEqual(self.screen.chosen, 5)
        self.assertFalse(self.screen.key(ord('q')))

    def test_vcpus(self):
        self.watch.update()
        self.screen.watched = self.watch.watched
        self.screen.key(10)
        self.screen.key(ord('v'))
        lines = self.screen.lines(200)[0]
        self.assertEqual(lines[1].split()[-4:], ['vCPU', '0', 'vCPU', '1'])
        self.assertEqual(lines[2].split()[:4],
                         ['hits', 'vcpu', 'cumulative', '15'])

    def test_vm_gone(self):
        self.assertTrue(self.watch.update())        # one is left
        self.screen.watched = self.watch.watched
        self.assertEqual({r[0] for r in self.screen.rows()}, {'a'})
        self.assertIn('bb: gone', self.screen.notes()[0])
        self.assertFalse(self.watch.update())
        self.assertEqual(top.as_json(self.watch.watched)['vms'][0]['error'],
                         'gone (it ended)')


class Later(unittest.TestCase):
    """VMs that come and go in a directory."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix='hottop-', dir='/tmp'))
        self.addCleanup(shutil.rmtree, self.folder)
        self.vms = {}           # name: FakeVm, or what opening it raises
        self.opened = []
        patch = mock.patch.object(top, 'SocketVm', self.open)
        patch.start()
        self.addCleanup(patch.stop)
        self.said = []
        self.watch = top.Watch()

    def open(self, path, limit_s=None):
        self.opened.append((Path(path).name, limit_s))
        vm = self.vms[Path(path).name]
        if isinstance(vm, Exception):
            raise vm
        return vm

    def start(self, name, vm):
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f'{self.folder}/{name}')
        self.vms[name] = vm

    def end(self, name):
        (self.folder / name).unlink()

    def names(self):
        return [(vm.name, bool(state.error))
                for vm, state in self.watch.watched]

    def watch_folder(self):
        self.watch.add_folder(str(self.folder), self.said.append)

    def test_nothing_yet(self):
        self.watch_folder()
        self.assertTrue(self.watch.update())
        self.assertEqual(top.Screen(self.watch.watched).notes(), ['no VM yet'])
        with self.assertRaisesRegex(top.TopError, 'no socket is in it'):
            top.check_once(self.watch)

    def test_later(self):
        self.watch_folder()
        self.start('a', FakeVm('a', values(1), values(2)))
        self.assertTrue(self.watch.update())
        self.assertEqual(self.names(), [('a', False)])
        # it does not keep the screen for long
        self.assertEqual(self.opened, [('a', top.LATER_TIMEOUT_S)])
        self.watch.update()
        self.assertIsNotNone(self.watch.watched[0][1].interval_s)

    def test_comes_back(self):
        first = FakeVm('a', values(1))
        self.start('a', first)
        self.watch_folder()
        self.watch.update()
        self.assertEqual(self.names(), [('a', True)])
        self.assertTrue(first.closed)
        self.end('a')
        self.watch.update()
        self.assertEqual(self.names(), [('a', True)])
        self.start('a', FakeVm('again', values(1)))
        self.watch.update()
        self.assertEqual(self.names(), [('again', False)])

    def test_gone_for_long(self):
        self.start('a', FakeVm('a', values(1)))
        self.watch_folder()
        self.watch.update()
        self.end('a')
        with mock.patch.object(time, 'monotonic',
                               return_value=time.monotonic() + 2 * top.GONE_S):
            self.assertTrue(self.watch.update())
        self.assertEqual(self.names(), [])

    def test_left_out(self):
        self.start('mute', top.TopError('no answer'))
        self.start('old', top.NoSuchProvider('no provider'))
        self.watch_folder()
        self.assertEqual(self.said, ['left out: no answer',
                                     'left out: no provider'])
        self.assertEqual(self.watch.left_out(), self.said)
        self.watch.update()
        self.assertEqual(len(self.opened), 2)   # not at each sample
        with mock.patch.object(time, 'monotonic',
                               return_value=time.monotonic() + 2):
            self.vms['mute'] = FakeVm('now', values(1))
            self.watch.update()
        self.assertEqual(len(self.opened), 3)   # another QEMU stays so
        self.assertEqual(self.names(), [('now', False)])
        self.end('old')
        self.watch.update()
        self.assertEqual(self.watch.left_out(), [])


if __name__ == '__main__':
    unittest.main()
