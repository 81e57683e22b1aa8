# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes an assigned device of a host: named, not shown, in 'make run'."""
from mechanism import Mechanism

REASON = ('needs a device that is assigned with VFIO; make check-lab runs it in '
          'an emulated host that has some (tests/lab/{})')


def not_here(name, prefix, tests):
    return Mechanism(name=name, prefix=prefix, used='', did=str, on={},
                     possible=lambda: REASON.format(tests))


MECHANISMS = [
    not_here('interrupt affinity', 'irq-affinity', 'test_irq_affinity.py'),
    not_here('write tracking', 'write-tracking', 'test_write_tracking.py'),
]
