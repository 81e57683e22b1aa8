# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested lab: an emulated host with real KVM, VFIO and interrupts.

    with Lab('basic') as lab:                       # about 10 s
        address = lab.run('to_vfio $(pci_find 8086:10d3); pci_find 8086:10d3')
        with lab.guest('nic', SCRIPT,
                       devices=[f'vfio-pci,host={address}']) as guest:
            guest.wait_parked('ready')
            guest.vm.cmd('query-status')            # the inner QEMU's QMP
            guest.resume()
            results = guest.finish()

The outer QEMU emulates (TCG) a host with SVM, an IOMMU and devices; a Linux in
it runs our QEMU.  Everything is reached through virtio-serial ports of the
emulated host: its agent (tests/lab/host-init), and for each of SLOTS inner
QEMUs a port for QMP, one for the guest's results and one for its console.

Logs are kept in build/report/lab/NAME/.
"""
import asyncio
import base64
import os
import re
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'guest'))

from guest import GuestFailure, GuestProtocol, console_tail  # noqa: E402
from hotpath_paths import (SetupError, qemu_binary,         # noqa: E402
                           report_dir, use_qemu_python)
from image import prepare                                   # noqa: E402
from initramfs import extra_archive                         # noqa: E402

SLOTS = 3
# Limits are for what hangs, so that it ends; a loaded machine is five times
# slower than an idle one.
BOOT_SILENCE_S = 60     # without a word on the console
GUEST_LIMIT_S = 180
RUN_LIMIT_S = 60
QMP_LIMIT_S = 60
ANSWER_SLACK_S = 30     # for the agent to come back after a command's limit
STALL = re.compile(r'rcu.*(stall|starved)|soft lockup|BUG: workqueue lockup|'
                   r'blocked for more than', re.I)
SIGNAL = re.compile(r'potentially unexpected fatal signal \d+')
PANIC = re.compile(r'(Kernel panic[^\n]*|BUG: [^\n]*|Oops[^\n]*|'
                   r'reboot: Power down)')

IOMMUS = {
    'intel': (['intel-iommu,intremap=on,caching-mode=on'],
              'intel_iommu=on iommu=nopt'),
    'amd': (['amd-iommu,intremap=on,dma-remap=on'], 'iommu=nopt'),
    # its driver is an optional module; it remaps no interrupts, so VFIO must
    # be told to go on
    'virtio': (['virtio-iommu-pci'], 'iommu=nopt lab=unsafe-interrupts'),
}


class LabHung(Exception):
    """The emulated host itself stopped; not the fault of what is tested."""


class LabError(AssertionError):
    """A command in the emulated host failed; carries its output."""


def outer_binary():
    """Return the QEMU that emulates the host: LAB_QEMU or ours."""
    return os.environ.get('LAB_QEMU') or str(qemu_binary())


def network(folder, number, *cards):
    """Return arguments of an isolated network; the host's end is 10.N.0.1.

    @cards: -device texts of the other end, with netdev= left out
    The sink takes every packet and sends none: a hub stops its senders while
    no other member can receive, as the card under test before it is driven.
    """
    args = ['-netdev', f'dgram,id=sink{number},local.type=unix,'
            f'local.path={folder}/sink{number},remote.type=unix,'
            f'remote.path={folder}/nobody',
            '-netdev', f'hubport,id=hub{number},hubid={number},'
            f'netdev=sink{number}',
            '-netdev', f'hubport,id=peer{number},hubid={number}', '-device',
            f'virtio-net-pci,netdev=peer{number},romfile=,'
            f'mac=52:54:00:1a:b0:{number:02x}']
    for index, card in enumerate(cards):
        name = f'net{number}x{index}'
        args += ['-netdev', f'hubport,id={name},hubid={number}',
                 '-device', f'{card},netdev={name},romfile=']
    return args


def device_arguments(folder):
    """Return what the emulated host can assign: NICs, disk, edu, ivshmem;
    and a disk of its own (virtio-blk)."""
    for name in 'nvme.raw', 'scratch.raw':
        with open(folder / name, 'wb') as image:
            image.truncate(64 << 20)
    return [
        *network(folder, 1, 'e1000e,mac=52:54:00:00:00:01'),
        '-device', 'pcie-root-port,id=rp0,chassis=1',
        *network(folder, 2, 'igb,bus=rp0,mac=52:54:00:00:00:02'),
        '-blockdev', f'driver=file,node-name=nvme,filename={folder}/nvme.raw',
        '-device', 'nvme,serial=lab,drive=nvme',
        '-blockdev', 'driver=file,node-name=scratch,'
        f'filename={folder}/scratch.raw',
        '-device', 'virtio-blk-pci,serial=scratch,drive=scratch',
        '-device', 'edu',
        '-object', 'memory-backend-ram,id=shm,share=on,size=1M',
        '-device', 'ivshmem-plain,memdev=shm']


def port_arguments(folder, logs):
    """Return the virtio-serial ports; consoles are files, all else sockets."""
    args = ['-device', 'virtio-serial-pci,max_ports=16']
    names = [('agent', 'socket')]
    for slot in range(SLOTS):
        names += [(f'qmp{slot}', 'socket'), (f'res{slot}', 'socket'),
                  (f'con{slot}', 'file')]
    for name, kind in names:
        where = (f'socket,id={name},server=on,wait=off,path={folder}/{name}'
                 if kind == 'socket' else
                 f'file,id={name},path={logs / name}.log')
        args += ['-chardev', where, '-device',
                 f'virtserialport,chardev={name},name={name}']
    return args


class Lab:
    """A running emulated host; use as a context manager."""

    def __init__(self, name, iommu='intel', smp=None, mem='2G', extra=(),
                 append='', say=lambda text: None):
        """
        @name: of the report directory
        @iommu: a key of IOMMUS
        @smp: its processors, 1 to 8; by default LAB_SMP or 2
        @extra: further arguments of the outer QEMU
        """
        self.name, self.say = name, say
        self.folder = report_dir('lab', name)
        self.retries = 0
        self._iommu, self._mem = iommu, mem
        self._smp = smp or int(os.environ.get('LAB_SMP', '2'))
        self._extra, self._append = list(extra), append
        self._tmp = self._process = self._agent = None
        self._count = 0
        self._slots = []

    # ------------------------------------------------------------ start, end

    def command(self, image, folder, interactive=False):
        """Return the outer QEMU's command line.

        @folder: for sockets and the disk, a short path
        """
        devices, parameters = IOMMUS[self._iommu]
        log = self.folder / 'console.log'
        return [
            outer_binary(), '-nodefaults', '-no-reboot', '-display', 'none',
            '-M', 'q35,sata=off,kernel-irqchip=split',
            '-accel', 'tcg,thread=multi', '-cpu', 'EPYC,+svm,+npt',
            '-smp', str(self._smp), '-m', self._mem,
            '-L', '/usr/share/seabios', '-L', '/usr/share/qemu',
            '-kernel', str(image.kernel.image), '-initrd', str(image.initrd),
            # no_timer_check: whether the timer ticks in time depends on us
            '-append', ' '.join((
                'console=ttyS0 panic=-1 printk.time=1 no_timer_check',
                parameters,
                'quiet lab=shell' if interactive else '', self._append)),
            '-d', 'cpu_reset,guest_errors', '-D',
            str(self.folder / 'cpu.log'),
            '-serial', 'mon:stdio' if interactive else f'file:{log}',
            *(a for d in devices for a in ('-device', d)),
            *port_arguments(folder, self.folder),
            *device_arguments(folder), *self._extra]

    def __enter__(self):
        try:
            self._boot()
        except LabHung as hung:
            self.note_retry(f'at boot: {hung}')
            try:
                self._boot()
            except LabHung as again:
                raise LabError(f'the emulated host does not start: {again}\n'
                               + console_tail(self.folder / 'console.log')
                               ) from None
        return self

    def __exit__(self, *exc):
        self.close()

    def note_retry(self, why):
        """Count a start of the emulated host that was needed once more."""
        self.retries += 1
        kept = []
        for name in ('console', 'cpu'):
            log = self.folder / f'{name}.log'
            if log.is_file():
                kept.append(log.with_name(f'{name}-hung-{self.retries}.log'))
                shutil.copy(log, kept[-1])
        self.say(f'lab {self.name}: the emulated host hung ({why}); started '
                 f'once more; its logs: {" ".join(map(str, kept))}')
        self.close()

    def _boot(self):
        start = time.monotonic()
        image = prepare(say=self.say)
        if self._iommu == 'virtio':
            image.kernel.module('virtio_iommu')     # or KernelLacks
        self._tmp = Path(tempfile.mkdtemp(prefix='hotlab-', dir='/tmp'))
        self._slots = list(range(SLOTS))
        try:
            with open(self.folder / 'qemu.log', 'wb') as log:
                self._process = subprocess.Popen(
                    self.command(image, self._tmp), stderr=log, stdout=log,
                    stdin=subprocess.DEVNULL)
            self._agent = self.connect('agent')
            self._wait_ready()
        except BaseException:
            self.close()
            raise
        self.say(f'lab {self.name}: the emulated host is up after '
                 f'{time.monotonic() - start:.0f} s')

    def close(self):
        """End the emulated host with everything in it."""
        if self._agent:
            self._agent.close()
            self._agent = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._tmp:
            shutil.rmtree(self._tmp, ignore_errors=True)
            self._tmp = None

    @property
    def nvme_image(self):
        """The file behind the emulated host's NVMe controller."""
        return self._tmp / 'nvme.raw'

    @property
    def scratch_image(self):
        """The file behind the emulated host's own disk, /dev/vda."""
        return self._tmp / 'scratch.raw'

    def connect(self, port):
        """Return a socket that is connected to a virtio-serial port."""
        deadline = time.monotonic() + 20
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(f'{self._tmp}/{port}')
                return sock
            except OSError:
                sock.close()
                if self._process.poll() is not None \
                        or time.monotonic() > deadline:
                    raise LabError(
                        'the outer QEMU did not start:\n'
                        + console_tail(self.folder / 'qemu.log')) from None
                time.sleep(0.05)

    def _wait_ready(self):
        said, deadline = -1, 0
        while not select.select([self._agent], [], [], 0.2)[0]:
            size = len(self._log('console'))
            if size != said:
                said, deadline = size, time.monotonic() + BOOT_SILENCE_S
            elif time.monotonic() > deadline:
                raise LabHung(f'no word for {BOOT_SILENCE_S} s')
        line = self._read_line(time.monotonic() + ANSWER_SLACK_S)
        if not line.startswith('READY'):
            raise LabHung(f'the agent said {line!r}')

    # ------------------------------------------------------------- the agent

    def _read(self, size, deadline):
        """Read exactly size bytes from the agent."""
        data = b''
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._agent], [], [], left)[0]:
                raise LabHung('the emulated host does not answer')
            try:
                part = self._agent.recv(size - len(data))
            except OSError:
                part = b''
            if not part:
                raise LabHung(self._how_it_ended())
            data += part
        return data

    def _how_it_ended(self):
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return 'its agent has closed the port'
        if code == 0:
            return self._why_off()
        return f'the outer QEMU ended with {code}: {self.folder}/qemu.log'

    def _why_off(self):
        """Say why the emulated machine was switched off or reset."""
        if 'Triple fault' in self._log('cpu'):
            return f'a triple fault in the emulated host: {self.folder}/cpu.log'
        return self.panic() or ('the emulated host went off: '
                                f'{self.folder}/console.log')

    def panic(self):
        """Return what the kernel of the emulated host died of, or None."""
        found = PANIC.search(self._log('console'))
        return found and f'the kernel of the emulated host: {found.group(1)}'

    def _log(self, name):
        path = self.folder / f'{name}.log'
        return path.read_text(errors='replace') if path.is_file() else ''

    def _read_line(self, deadline):
        line = b''
        while not line.endswith(b'\n'):
            line += self._read(1, deadline)
        return line.decode(errors='replace').strip()

    def attempt(self, script, limit_s=RUN_LIMIT_S):
        """Run shell text in the emulated host; return (status, output)."""
        self._count += 1
        text = script.encode() + b'\n'
        header = f'{self._count} {limit_s} {len(text)}\n'.encode()
        deadline = time.monotonic() + limit_s + ANSWER_SLACK_S
        try:
            self._agent.sendall(header + text)
        except OSError:
            raise LabHung(self._how_it_ended()) from None
        words = self._read_line(deadline).split()
        if words[:2] != ['END', str(self._count)]:
            raise LabHung(f'the agent said {words}')
        output = self._read(int(words[3]), deadline).decode(errors='replace')
        return int(words[2]), output

    def run(self, script, limit_s=RUN_LIMIT_S):
        """Run shell text in the emulated host; return its output, stripped.

        Raises LabError when its last command failed or the time was over.
        """
        status, output = self.attempt(script, limit_s)
        if status:
            why = f'no end within {limit_s} s' if status == 137 \
                else f'status {status}'
            raise LabError(f'in the emulated host: {why}\n  {script.strip()}\n'
                           f'it said:\n{output[-3000:]}')
        return output.strip()

    def put(self, path, data):
        """Write a file in the emulated host."""
        text = base64.encodebytes(data).decode()
        self.run(f"base64 -d >{shlex.quote(path)} <<'END'\n{text}END")

    def check_stalled(self):
        """Raise LabHung when the kernel of the emulated host says so."""
        text = self._log('console')
        found = STALL.search(text)
        if found:
            raise LabHung(text[found.start():].split('\n')[0])
        self.attempt('true', limit_s=10)

    # ------------------------------------------------------------- and guests

    def guest(self, name, script, **options):
        """Return a LabGuest in this host; see there."""
        return LabGuest(self, name, script, **options)

    def take_slot(self):
        if not self._slots:
            raise LabError(f'more than {SLOTS} inner guests at a time')
        return self._slots.pop(0)

    def give_slot(self, slot):
        self._slots.append(slot)

    def interrupts_by_cpu(self, pattern):
        """Return {name: {cpu: count}} of matching lines of /proc/interrupts.

        @pattern: regular expression for the number or for the rest of a line,
                  as '^(RES|CAL)$' or rf'vfio-msix\\[\\d+\\]\\({address}\\)'
        A name is 'NUMBER REST'; a CPU that is offline has no count.
        """
        head, *lines = self.run('cat /proc/interrupts').splitlines()
        cpus = [int(x.removeprefix('CPU')) for x in head.split()]
        found = {}
        for line in lines:
            number, _, rest = line.strip().partition(':')
            words = rest.split()
            counts = [int(w) for w in words[:len(cpus)] if w.isdigit()]
            name = ' '.join(words[len(counts):])
            if re.search(pattern, number) or re.search(pattern, name):
                found[f'{number} {name}'.strip()] = dict(zip(cpus, counts))
        return found

    def interrupts(self, pattern):
        """Return {name: count over all CPUs}; see interrupts_by_cpu()."""
        return {name: sum(counts.values()) for name, counts
                in self.interrupts_by_cpu(pattern).items()}

    def ipis(self):
        """Return {'RES' or 'CAL' or 'TLB': {cpu: count}}: what each CPU got.

        RES: rescheduling, also the kick of a vCPU; CAL: function calls; TLB
        flushes are a part of CAL.
        """
        found = self.interrupts_by_cpu('^(RES|CAL|TLB)$')
        return {name.split()[0]: counts for name, counts in found.items()}

    def irqs(self, address):
        """Return the numbers of a function's MSI or MSI-X interrupts."""
        names = self.run(f'ls /sys/bus/pci/devices/{address}/msi_irqs')
        return sorted(map(int, names.split()))

    def move_irq(self, number, cpus):
        """Let an interrupt go to these CPUs, a list as '0' or '0-1'."""
        self.run(f'echo {cpus} >/proc/irq/{number}/smp_affinity_list')

    def move_thread(self, tid, cpu):
        """Bind a thread, as of LabGuest.vcpu_threads(), to one CPU."""
        self.run(f'taskset -p {1 << cpu:x} {tid}')

    def online(self, cpu, there=True):
        """Take a CPU of the emulated host away, or bring it back."""
        self.run(f'echo {int(there)} >/sys/devices/system/cpu/cpu{cpu}/online')


def bounded_qmp(sock, late):
    """Return QEMU's own client for QMP, with a time limit for every step.

    A QEMU that dies leaves the port open, so nothing else ends a wait.
    @late: called when the time is over; raises
    """
    use_qemu_python()
    from qemu.qmp.legacy import QEMUMonitorProtocol

    class Client(QEMUMonitorProtocol):
        limit_s = QMP_LIMIT_S
        reported = False

        def _sync(self, future, timeout=None):
            try:
                return super()._sync(future, timeout or self.limit_s)
            except asyncio.TimeoutError:
                # asked once more for the report, or the caller's own limit
                if self.reported or timeout:
                    raise
                self.reported = True
                late()

    return Client(sock)


class LabGuest(GuestProtocol):
    """A Linux guest under our QEMU in the emulated host.

    A context manager; lines and results as of tests/guest/guest.py.
    @vm: with cmd(), to the inner QEMU's QMP
    """

    def __init__(self, lab, name, script, *, devices=(), args=(), smp=None,
                 mem='256M', machine='q35', append='', files=None,
                 timeout=GUEST_LIMIT_S, log=''):
        """
        @script: shell text, see tests/guest/init; None: no kernel, to be an
                 incoming migration's destination
        @devices: values for -device
        @smp: its vCPUs, by default LAB_GUEST_SMP or 1
        @log: trace events of the inner QEMU, separated by commas
        """
        super().__init__()
        self.lab, self.name, self.timeout = lab, name, timeout
        self._script, self._files = script, dict(files or {})
        self._devices, self._args = list(devices), list(args)
        self._smp = smp or int(os.environ.get('LAB_GUEST_SMP', '1'))
        self._mem, self._machine = mem, machine
        self._append, self._trace = append, log
        self.slot = self.vm = self._conn = self._deadline = self.pid = None
        self._console_start = 0
        self._unasked = []

    @property
    def console(self):
        return self.lab.folder / f'con{self.slot}.log'

    @property
    def qemu_log(self):
        """The inner QEMU's output, a path in the emulated host."""
        return f'/tmp/qemu{self.slot}.log'

    def _command(self):
        slot = self.slot
        args = ['-m', self._mem, '-smp', str(self._smp), '-name',
                f'{self.name},debug-threads=on']
        for name in ('qmp', 'con', 'res'):
            args += ['-chardev', f'pipe,id={name},path=/dev/lab/{name}{slot}']
        args += ['-mon', 'chardev=qmp,mode=control', '-serial', 'chardev:con',
                 '-serial', 'chardev:res',
                 '-kernel', '/fw/vmlinuz', '-initrd', f'/tmp/initrd{slot}',
                 '-append', f'console=ttyS0 panic=-1 quiet {self._append}']
        for device in self._devices:
            args += ['-device', device]
        for event in filter(None, self._trace.split(',')):
            args += ['-trace', event]
        return args + self._args

    def __enter__(self):
        self.slot = self.lab.take_slot()
        self._deadline = time.monotonic() + self.timeout
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self):
        slot = self.slot
        files = {**self._files, 'test.sh': (self._script or '').encode()
                 + b'\n'}
        self.lab.put(f'/tmp/extra{slot}', extra_archive(files))
        qmp = self.lab.connect(f'qmp{slot}')
        self._conn = self.lab.connect(f'res{slot}')
        self._console_start = self.console.stat().st_size
        machine = '' if self._machine == 'q35' else \
            f'-machine {self._machine} '
        arguments = ' '.join(map(shlex.quote, self._command()))
        self.pid = int(self.lab.run(
            f'cat /fw/guest.cpio.gz /tmp/extra{slot} >/tmp/initrd{slot}\n'
            f'inner_qemu {machine}{arguments} >{self.qemu_log} 2>&1 &\n'
            'echo $!'))
        self.vm = bounded_qmp(qmp, self._no_answer)
        self.vm.connect()

    def fail(self, why):
        """Fail, and report what can be known of the guest."""
        self._fail(why)

    def _fail(self, why):
        self.lab.check_stalled()
        raise GuestFailure(
            f'inner guest {self.name}: {why}\n  results so far: '
            f'{self.results}\n  last lines of its console ({self.console}):\n'
            f'{console_tail(self.console)}\n  its vCPUs:\n'
            f'{self._registers()}\n  events of its QEMU:\n'
            f'{self._events()}\n  its QEMU said:\n'
            f'{self._qemu_state()}\n  the emulated host said:\n'
            f'{console_tail(self.lab.folder / "console.log", 10)}')

    def _silent(self, what):
        if not self.alive():
            self._fail(f'its QEMU has ended before "{what}" '
                       f'({self._how_it_ended()})')

    def _no_answer(self):
        self._fail('its QEMU does not answer' if self.alive() else
                   f'its QEMU has ended ({self._how_it_ended()})')

    def _how_it_ended(self):
        """Say in one line how the inner QEMU ended, as far as can be known.

        -no-reboot: also by a reset of the guest, as by a triple fault.
        """
        reasons = [e['data'].get('reason') for e in self._told()
                   if e['event'] == 'SHUTDOWN']
        signals = SIGNAL.findall(self.lab._log('console'))
        console = console_tail(self.console, 1).strip()
        return ', '.join([
            f'SHUTDOWN {reasons[-1]}' if reasons else 'no SHUTDOWN event',
            *(f'{signals[-1]} in the emulated host' for _ in signals[-1:]),
            f'its console: "{console[-100:]}"'])

    def _qemu_state(self):
        """The end of the inner QEMU's output, and where its threads are."""
        return self.lab.attempt(
            f'tail -n 20 {self.qemu_log}\n'
            f'for t in /proc/{self.pid}/task/*; do\n'
            '    echo "thread $(cat $t/comm), $(grep State $t/status):"\n'
            '    head -n 8 $t/stack\ndone')[1]

    def _told(self):
        """What it told by QMP and nobody asked for: why it ended, for one."""
        try:
            self._unasked += self.vm.get_events()
        except Exception:               # as in _registers()
            pass
        return self._unasked

    def _events(self):
        return '\n'.join(f'    {e["event"]} {e.get("data", "")}'
                         for e in self._told()[-5:])

    def _registers(self):
        """Twice the registers: a vCPU that spins is told from one that waits.

        The whole set is in the report directory.
        """
        if not self.vm or self.vm.reported or not self.alive():
            return '    (its QEMU cannot be asked)'
        self.vm.reported, self.vm.limit_s = True, 5
        texts = []
        try:
            for _ in range(2):
                texts.append(self.vm.cmd('human-monitor-command', **{
                    'command-line': 'info registers -a'}))
        except Exception as err:        # it is ill, this is only the report
            texts.append(f'{err.__class__.__name__}: {err}')
        text = '\n'.join(texts)
        (self.lab.folder / f'registers-{self.name}.log').write_text(text)
        kept = re.findall(r'^.*(?:CPU#|RIP=|EIP=|Error).*$', text, re.M)
        return '\n'.join('    ' + line.strip() for line in kept)

    def limit(self, seconds):
        """Give what follows less, or more, time than @timeout."""
        self.timeout = seconds
        self._deadline = time.monotonic() + seconds

    def vcpu_threads(self):
        """Return the threads of the vCPUs, in the emulated host, by index."""
        vcpus = self.vm.cmd('query-cpus-fast')
        return [v['thread-id'] for v in
                sorted(vcpus, key=lambda v: v['cpu-index'])]

    def trace(self, event):
        """Return the lines of a trace event that @log asked for."""
        return [line for line in self.log_text().splitlines()
                if re.search(rf'\b{re.escape(event)}\b', line)]

    def wait_event(self, name, idle=None, **data):
        """Wait for an event of the inner QEMU whose data contains @data.

        @idle: called now and then while there is none; may fail() earlier
        """
        while True:
            self.check_time(name)
            try:
                event = self.vm.pull_event(wait=10.0)
            except asyncio.TimeoutError:
                event = None            # on a slow machine; check_time() ends it
                if idle:
                    idle()
            if event and event['event'] == name \
                    and data.items() <= event.get('data', {}).items():
                return event

    def log_text(self):
        """Return what the inner QEMU wrote, traces included."""
        return self.lab.run(f'cat {self.qemu_log}')

    def alive(self):
        return self.lab.attempt(f'kill -0 {self.pid}')[0] == 0

    def kill(self):
        """End the inner QEMU at once, as a crash would."""
        self.lab.attempt(f'kill -KILL {self.pid}')

    def wait_exit(self, limit_s=RUN_LIMIT_S):
        """Wait until the inner QEMU is gone."""
        status, _ = self.lab.attempt(
            f'while kill -0 {self.pid} 2>/dev/null; do usleep 50000; done',
            limit_s)
        if status:
            self._fail(f'its QEMU did not end within {limit_s} s')

    def finish(self):
        """Wait for the end of the script; return {key: value}."""
        self.wait_done()
        self.wait_exit()
        if self.status:
            self._fail(f'script status {self.status}, results {self.results}')
        return self.results

    def close(self):
        """End the guest, whatever its state."""
        if self.pid and self.lab._process:
            try:
                self.lab.attempt(f'kill -KILL {self.pid}; while kill -0 '
                                 f'{self.pid}; do usleep 20000; done', 10)
            except LabHung:
                pass        # the next command will say so
        for thing in (self.vm, self._conn):
            if thing:
                try:
                    thing.close()
                except Exception:       # it went with its QEMU
                    pass
        if self.slot is not None:
            self.lab.give_slot(self.slot)
            self.slot = None
        self.vm = self._conn = self.pid = None

    def __exit__(self, *exc):
        self.close()
