# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's end of a zpipe: the command 'zpipe' between checked streams.

    peer = Peer(path, send=(1 << 30, 1), receive=(1 << 30, 2))
    stats = peer.finish(60)         # fails unless both streams are exact

Both ends make and check the streams with tests/guest/programs/stream.c.
"""
import os
import re
import subprocess
import tempfile
import time

from hotpath_paths import GUEST_DIR, SetupError, qemu_binary
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / 'programs' / 'stream.c'


def zpipe_command():
    """Return the path of the command: ZPIPE, or that of the build."""
    return os.environ.get('ZPIPE') or str(
        qemu_binary('subprojects/libzpipe/zpipe'))


def stream_program():
    """Compile stream.c so that guest and host can run it; return the path."""
    target = GUEST_DIR / 'stream'
    if (target.is_file()
            and target.stat().st_mtime > SOURCE.stat().st_mtime):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
        done = subprocess.run(['gcc', '-O2', '-static', '-o', f'{tmp}/stream',
                               str(SOURCE)], text=True, stderr=subprocess.PIPE)
        if done.returncode:
            raise SetupError(f'{SOURCE} does not compile: {done.stderr}')
        os.replace(f'{tmp}/stream', target)
    return target


def parse_stats(text):
    """Return {'sent': n, 'received map': {'messages': n, 'bytes': n}, ...}
    from what 'zpipe -v' says."""
    found = {}
    for line in text.splitlines():
        words = line.partition('zpipe: ')[2].split()
        pairs = {k: int(v) for k, v in (w.split('=') for w in words
                                        if re.fullmatch(r'[\w-]+=\d+', w))}
        name = ' '.join(w for w in words if '=' not in w)
        if not pairs:
            continue
        if name in ('', 'fallback'):
            found.update(pairs if not name else
                         {f'fallback {k}': v for k, v in pairs.items()})
        else:
            found[name] = pairs
    return found


class Peer:
    """A running 'zpipe connect' or 'zpipe listen'."""

    def __init__(self, path, *options, verb='connect', send=None,
                 receive=None, output=None, user=None, wrapper=()):
        """
        @send, @receive: (bytes, seed) of a stream to make and to check
        @output: a file for what is received, instead of checking it
        @user: number of the user to be, as root
        @wrapper: a program and its arguments, to run zpipe
        """
        self._processes, self._input = {}, None
        self._logs = []
        stream = str(stream_program())
        self._log = self._new_log()
        stdin, stdout = subprocess.DEVNULL, output or subprocess.DEVNULL
        if send:
            # The end of the input would end the connection: hold it back
            # while something is to be received.
            stdin, self._input = os.pipe()
            self._start('make', [stream, 'make', *map(str, send)],
                        stdout=self._input, stderr=subprocess.DEVNULL)
            if not receive:
                self._end_input()
        if receive:
            stdout = subprocess.PIPE
        if not send:
            options = ('--receive-only', *options)
        elif not receive and not output:
            options = ('--send-only', *options)
        self.zpipe = self._start(
            'zpipe', [*wrapper, zpipe_command(), verb, '-v', *options, str(path)],
            stdin=stdin, stdout=stdout, stderr=self._log, user=user)
        if send:
            os.close(stdin)     # theirs only
        if receive:
            self._check_log = self._new_log()
            self._start('check', [stream, 'check', *map(str, receive)],
                        stdin=self.zpipe.stdout, stderr=self._check_log)
            self.zpipe.stdout.close()

    def _start(self, name, command, **options):
        process = subprocess.Popen(command, **options)
        self._processes[name] = process
        return process

    def _end_input(self):
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def _new_log(self):
        log = tempfile.TemporaryFile('w+')
        self._logs.append(log)
        return log

    def said(self):
        """What zpipe has written to standard error so far."""
        self._log.seek(0)
        return self._log.read()

    def close(self):
        """End all of it, whatever the state."""
        self._end_input()
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        for log in self._logs:
            log.close()

    def _wait(self, name, deadline):
        process = self._processes[name]
        try:
            return process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f'the peer\'s "{name}" did not end in time; '
                                 f'zpipe said: {self.said()}') from None

    def finish(self, timeout):
        """Wait for both streams, end zpipe, return its statistics."""
        deadline = time.monotonic() + timeout
        try:
            return self._finish(deadline)
        finally:
            self.close()

    def _finish(self, deadline):
        if 'make' in self._processes:
            self._wait('make', deadline)
        if 'check' in self._processes and self._wait('check', deadline):
            self._check_log.seek(0)
            raise AssertionError('the received stream is '
                                 f'{self._check_log.read()}; zpipe said: '
                                 f'{self.said()}')
        if 'check' in self._processes:
            self.zpipe.terminate()      # else it leaves when all was taken
        code = self._wait('zpipe', deadline)
        if code not in (0, -15):
            raise AssertionError(f'zpipe exits with {code}: {self.said()}')
        return parse_stats(self.said())
