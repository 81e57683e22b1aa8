# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell of 'make lab', on a terminal as a developer has it."""
import os
import pty
import re
import select
import signal
import subprocess
import time
import unittest
from pathlib import Path

import labtest

SHELL = Path(__file__).resolve().parent / 'shell'
STEP_LIMIT_S = 180


class Terminal:
    """A program on a terminal of its own; use as a context manager."""

    def __init__(self, *command):
        self.text, self._read = '', 0
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True)
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        # the session: the script and the QEMU that it started
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        os.close(self._master)

    def expect(self, pattern):
        """Wait for output; what is before its end is not looked at again."""
        deadline = time.monotonic() + STEP_LIMIT_S
        while True:
            match = re.compile(pattern).search(self.text, self._read)
            if match:
                self._read = match.end()
                return match
            left = deadline - time.monotonic()
            data = b''
            if left > 0 and select.select([self._master], [], [], left)[0]:
                try:
                    data = os.read(self._master, 4096)
                except OSError:         # its last process has gone
                    pass
            if not data:
                raise AssertionError(f'no {pattern!r}; the end of what was '
                                     f'said:\n{self.text[-3000:]}')
            self.text += data.decode(errors='replace').replace('\r', '')

    def type(self, line):
        os.write(self._master, line.encode() + b'\n')

    def wait(self):
        """Return the exit status."""
        return self._process.wait(STEP_LIMIT_S)


class Shell(unittest.TestCase):

    @labtest.long_test('a host of its own')
    def test_a_guest_is_ready_to_start(self):
        labtest.close_labs()            # two at a time are slow
        with labtest.time_limit(), Terminal(str(SHELL)) as term:
            term.expect(r'The emulated host\.(?s:.*)guest -device')
            term.expect(r'# ')
            # what is typed comes back as well: ask for what differs from it
            term.type('echo devices $(pci_find 8086:10d3) end')
            term.expect(r'devices 0000:[0-9a-f:.]+ end')
            term.type('guest -name inner')
            term.expect(r'init: \S+ is up')
            term.type('echo sum $((6 * 7)) $(cat /sys/class/dmi/id/sys_vendor)')
            term.expect(r'sum 42 QEMU')
            term.type('exit')
            term.expect(r'reboot: Power down')
            term.expect(r'# ')
            term.type('echo host again $((40 + 2))')
            term.expect(r'host again 42')
            term.type('poweroff -f')
            self.assertEqual(term.wait(), 0)

    def test_print(self):
        """--print shows what would run, with the IOMMU that was chosen."""
        done = subprocess.run([SHELL, '--print', '--iommu', 'amd', '--smp',
                               '4'], text=True, stdout=subprocess.PIPE,
                              check=True)
        self.assertIn(' -smp 4 ', done.stdout)
        self.assertIn('amd-iommu', done.stdout)


if __name__ == '__main__':
    unittest.main()
