# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/hotpath-top on running VMs."""
import contextlib
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from bare_metal import BareGuest, build_image
from guest import hotpath_counters, is_base_build
from hotpath_paths import BUILD, ROOT

TOP = ROOT / 'scripts' / 'hotpath-top'
HINTS = {'machine': 'q35,dispatch-hints=on'}
# it reads a port for longer than any test
FOREVER = {'COUNT': 2000000000}


class HotpathTop(unittest.TestCase):

    def setUp(self):
        if is_base_build():
            self.skipTest('the unpatched base has no provider "hotpath"')
        self.folder = Path(tempfile.mkdtemp(prefix='hottop-', dir='/tmp'))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def guest(self, name, smp=1, **options):
        """Return a running VM whose QMP socket is NAME in our folder."""
        args = ['-name', name, '-qmp',
                f'unix:{self.folder}/{name},server=on,wait=off']
        return BareGuest(f'top-{name}', build_image('ports', FOREVER),
                         devices=('pci-testdev,addr=4.0', 'addr-hint-pci'),
                         args=args, smp=smp, **options)

    def top(self, *args, timeout=30):
        return subprocess.run([str(TOP), *map(str, args)], text=True,
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=timeout)

    def one_json(self, *args):
        done = self.top('--once', '--json', *args)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        return json.loads(done.stdout)['vms']

    def refused(self, *args):
        done = self.top('--once', *args)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        return done.stderr

    def test_numbers(self):
        """Values, types and rates are those that query-stats gives."""
        with self.guest('one', smp=2, **HINTS) as guest:
            low = hotpath_counters(guest.vm, 'vcpu')['addr-hint-hits']
            start = time.monotonic()
            vms = self.one_json('-i', 0.5, self.folder / 'one')
            elapsed_s = time.monotonic() - start
            high = hotpath_counters(guest.vm, 'vcpu')['addr-hint-hits']
        self.assertEqual([vm['vm'] for vm in vms], ['one'])
        self.assertEqual(list(vms[0]['mechanisms']), ['addr-hint'])
        stats = vms[0]['mechanisms']['addr-hint']
        self.assertEqual({s['target'] for s in stats}, {'vm', 'vcpu'})
        hits = [s for s in stats if s['name'] == 'addr-hint-hits']
        self.assertEqual(sorted(s['vcpu'] for s in hits), [0, 1])
        value = sum(s['value'] for s in hits)
        self.assertTrue(low < value <= high, (low, value, high))
        rate = sum(s['rate_per_s'] for s in hits)
        self.assertTrue(0 < rate <= (high - low) / vms[0]['interval_s'])
        self.assertTrue(0.5 <= vms[0]['interval_s'] < elapsed_s)
        level, = [s for s in stats if s['name'] == 'addr-hint-registered']
        self.assertEqual((level['type'], level['rate_per_s']),
                         ('instant', None))

    def test_text(self):
        with self.guest('one', **HINTS):
            done = self.top('--once', '-i', 0.2, self.folder / 'one')
            totals = self.top('--once', '-i', 0, self.folder / 'one')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('one: addr-hint', done.stdout)
        row, = [x.split() for x in done.stdout.splitlines()
                if x.split()[0] == 'hits']
        self.assertEqual(row[1:3], ['vcpu', 'cumulative'])
        self.assertGreater(int(row[3].replace(',', '')), 0)
        self.assertGreater(int(row[4].replace(',', '')), 0)
        row, = [x.split() for x in totals.stdout.splitlines()
                if x.split()[0] == 'hits']
        self.assertEqual(row[4], '-')

    def test_directory(self):
        """All VMs of a directory; what is no monitor is told and left out."""
        (self.folder / 'file').write_text('no socket')
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f'{self.folder}/dead')
        with self.guest('one', **HINTS), self.guest('two'):
            done = self.top('--once', '--json', '-i', 0, self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('left out', done.stderr)
        self.assertIn('dead', done.stderr)
        vms = {vm['vm']: vm for vm in json.loads(done.stdout)['vms']}
        self.assertEqual(sorted(vms), ['one', 'two'])
        names = {s['name'] for s in vms['two']['mechanisms']['addr-hint']}
        self.assertIn('addr-hint-window-hits', names)
        self.assertNotIn('addr-hint-hits', names)

    def test_quiet_end(self):
        """A VM that was opened before another one failed is left in silence."""
        with self.guest('one', **HINTS):
            said = self.refused(self.folder / 'one', self.folder / 'none')
        self.assertIn('No such file', said)

    def test_later(self):
        """A VM that starts later in a directory is picked up; it may end."""
        process = subprocess.Popen(
            [str(TOP), '-i', '0.2', '--json', str(self.folder)],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # which a shell's background job ignores, and what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        with process:
            self.assertEqual(json.loads(process.stdout.readline()),
                             {'vms': []})
            with self.guest('late', **HINTS):
                self.until(process, lambda vms: vms and vms[0]['interval_s'])
            gone = self.until(process, lambda vms: vms[0]['error'])
            self.assertIn('gone', gone[0]['error'])
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=20)[1]
        self.assertEqual((process.returncode, said), (0, ''))

    def until(self, process, wanted, limit_s=30):
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            vms = json.loads(process.stdout.readline())['vms']
            if wanted(vms):
                return vms
        process.kill()
        return self.fail(f'not seen; the last was {vms}')

    def test_errors(self):
        """One line that says what is wrong, and status 1."""
        self.assertIn('No such file', self.refused(self.folder / 'none'))
        self.assertIn('is no socket', self.refused(TOP))
        self.assertIn('no socket is in it', self.refused(self.folder))
        with socket.socket() as nobody:
            nobody.bind(('localhost', 0))
            port = nobody.getsockname()[1]
            self.assertIn('Connect call failed',
                          self.refused(f'localhost:{port}'))
        done = self.top('-i', '-3', self.folder)
        self.assertEqual(done.returncode, 2)
        self.assertIn('-3 is not 0 or 0.1 to 3600 seconds', done.stderr)

    def test_silent_socket(self):
        """A monitor with another client, or no monitor, does not hang us."""
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(f'{self.folder}/mute')
            mute.listen(1)
            said = self.refused(self.folder / 'mute')
        self.assertIn('no answer within 5 s', said)
        self.assertIn('another client', said)

    def test_unpatched(self):
        """Another QEMU is told as such."""
        base = BUILD / 'base' / 'out' / 'qemu-system-x86_64'
        if not os.access(base, os.X_OK):
            self.skipTest('the unpatched base is not built (make build-base)')
        with BareGuest('top-base', build_image('probe'), qemu=base, args=(
                '-qmp', f'unix:{self.folder}/base,server=on,wait=off')):
            said = self.refused(self.folder / 'base')
        self.assertIn('no provider "hotpath"', said)

    def test_nothing_on(self):
        """A VM without any mechanism: the provider does not exist there."""
        with BareGuest('top-off', build_image('probe'), args=(
                '-qmp', f'unix:{self.folder}/off,server=on,wait=off')):
            done = self.top('--once', '-i', 0, self.folder / 'off')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('no mechanism that counts is switched on', done.stdout)

    def test_vm_ends(self):
        """A VM that ends is told, and ends the watch if it was the last."""
        with self.guest('one', **HINTS) as guest:
            process = subprocess.Popen(
                [str(TOP), '-i', '0.2', '--json', str(self.folder / 'one')],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            with process:
                for _ in range(3):
                    vm, = json.loads(process.stdout.readline())['vms']
                    self.assertIsNone(vm['error'])
                self.assertGreater(vm['interval_s'], 0.19)
                guest.vm.shutdown(hard=True)
                last = json.loads(process.communicate(
                    timeout=20)[0].splitlines()[-1])['vms'][0]
        self.assertEqual(process.returncode, 1)
        self.assertIn('gone', last['error'])

    def test_screen(self):
        """The live view: a mechanism's line, all of it, vCPUs, the end."""
        with self.guest('one', smp=2, **HINTS), \
                self.on_terminal('-i', '0.3', self.folder / 'one') as view:
            view.until(b'busiest first')
            view.until(b'hits ')
            view.until(b'/s')
            view.type(b'\r')
            view.until(b'one: addr-hint')
            view.until(b'doorbell-writes')
            view.type(b'v')
            view.until(b'vCPU 1')
            view.type(b'\x7f')
            view.until(b'busiest first')
            view.type(b'+q')
            self.assertEqual(view.end(), 0)

    @contextlib.contextmanager
    def on_terminal(self, *args):
        view = Terminal([str(TOP), *map(str, args)])
        try:
            yield view
        finally:
            view.close()


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command):
        self.text = b''
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM='xterm', LINES='30', COLUMNS='120')
            os.execv(command[0], command)

    def until(self, wanted, limit_s=20):
        """Read until something was written; forget what came before it."""
        end = time.monotonic() + limit_s
        while wanted not in self.text:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f'no {wanted} in {self.text[-2000:]}')
            self.text += os.read(self.fd, 65536)
        self.text = self.text[self.text.index(wanted) + len(wanted):]

    def type(self, keys):
        os.write(self.fd, keys)

    def end(self):
        """Wait for the program; return its exit status."""
        with contextlib.suppress(OSError):      # it closes the terminal
            while os.read(self.fd, 65536):
                pass
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


if __name__ == '__main__':
    unittest.main()
