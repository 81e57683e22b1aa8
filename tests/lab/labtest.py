# SPDX-License-Identifier: GPL-2.0-or-later
"""Base of the lab's tests: one emulated host serves many of them.

    class Nic(LabTest):
        iommu = 'intel'                 # and so on, see Lab

        def test_something(self):
            self.lab.run(...)
            with self.lab.guest('name', SCRIPT) as guest: ...

A test or class under @long_test runs with HOTPATH_LONG=1 only.

A test that finds the emulated host itself hung (LabHung: its kernel reports a
stall or panics, or its agent is silent) is run once more on a new one; that is
counted and told.  Nothing else is repeated.
"""
import atexit
import contextlib
import functools
import os
import signal
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from lab import (GuestFailure, Lab, LabError,               # noqa: E402,F401
                 LabHung)
from guest_kernel import KernelLacks                       # noqa: E402
from hotpath_paths import note                              # noqa: E402

TEST_LIMIT_S = 360
LONG = os.environ.get('HOTPATH_LONG') == '1'

_labs = {}
_broken = {}            # name: why its emulated host did not start


def say(text):
    print(text, flush=True)


def long_test(why):
    """Leave a test, or all of a class, to the long tier.

    @why: what the short one has in its place, or how long this takes; printed
    """
    return unittest.skipUnless(LONG, f'{why}; HOTPATH_LONG=1 runs it')


def shared_lab(name, **options):
    """Return the running lab of that name; one runs at a time.

    One that did not start, which is found after two tries, is not tried again.
    Skips the test when the kernel lacks a driver for the emulated host.
    """
    if name in _broken:
        raise LabError(_broken[name])
    if name not in _labs:
        close_labs()
        lab = Lab(name, say=say, **options)
        try:
            lab.__enter__()
        except KernelLacks as err:
            raise unittest.SkipTest(str(err)) from None
        except LabError as err:
            _broken[name] = f'as in an earlier test: {err}'
            raise
        _labs[name] = lab
    return _labs[name]


def close_labs():
    while _labs:
        _labs.popitem()[1].close()


atexit.register(close_labs)


class TestTimeout(AssertionError):
    """A test took longer than its limit."""


def _late(*_):
    raise TestTimeout('not ended within the time limit of the test')


@contextlib.contextmanager
def time_limit(limit_s=TEST_LIMIT_S):
    """Raise TestTimeout in what takes longer than a test may."""
    before = signal.signal(signal.SIGALRM, _late)
    try:
        signal.alarm(limit_s)
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bounded(method):
    """Give a test, or a round of one, its time limit and a second try when the
    emulated host hung or its kernel panicked: that says nothing of the test.
    """
    @functools.wraps(method)
    def wrapper(self, *args):
        try:
            with time_limit(self.limit_s):
                method(self, *args)
            return
        except LabHung as hung:
            why = str(hung)
        except unittest.SkipTest:
            raise
        except Exception:
            why = self.lab.panic()
            if not why:
                raise
        self.doCleanups()
        note(f'{self.id()}: the emulated host hung ({why}), the test was run '
             'once more')
        self.lab.note_retry(why)
        self.lab.__enter__()
        try:
            with time_limit(self.limit_s):
                method(self, *args)
        except LabHung as again:
            raise LabError(f'the emulated host hung twice: {again}') from None
    return wrapper


class LabTest(unittest.TestCase):
    """A test in an emulated host; see the head of this file."""
    lab_name = 'host'
    lab_options = {}
    limit_s = TEST_LIMIT_S

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if name.startswith('test_') and callable(method):
                setattr(cls, name, bounded(method))

    def setUp(self):
        # not for a class: a host for tests that are all left out is waste
        self.lab = shared_lab(self.lab_name, **self.lab_options)

    def serve(self, number, size_kib):
        """Serve a random file on network N; return its digest."""
        port = 8000 + number
        return self.lab.run(f'''
            mkdir -p /tmp/srv
            head -c {size_kib}k /dev/urandom >/tmp/srv/down
            [ -e /tmp/httpd.{port} ] || httpd -p 10.{number}.0.1:{port} -h /tmp/srv
            touch /tmp/httpd.{port}
            sha256sum </tmp/srv/down | cut -d' ' -f1
        ''')

    def receive(self, number):
        """Take one upload on network N in the background."""
        # by itself nc would end at the end of its own input
        self.lab.run(f'nc -l -p {9000 + number} -e dd of=/tmp/up{number} '
                     'bs=64k 2>/dev/null &\n'
                     f'echo $! >/tmp/up{number}.pid')

    def received(self, number):
        """Return the digest of what was uploaded."""
        return self.lab.run(
            f'pid=$(cat /tmp/up{number}.pid)\n'
            'n=0; while kill -0 $pid 2>/dev/null; do\n'
            '    n=$((n + 1)); [ $n -lt 100 ] || exit 1; usleep 100000\n'
            f"done; sha256sum </tmp/up{number} | cut -d' ' -f1")
