# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mechanism must tell so that the demonstration can show it.

Each file in tests/guest/mechanisms/ defines MECHANISMS, a list of the entries
below; adding a file adds rows to 'make run'.
"""
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

from bare_metal import run_bare
from guest import Guest, hotpath_counters

FOLDER = Path(__file__).resolve().parent / 'mechanisms'


@dataclass
class Run:
    """What one run of a mechanism gave."""
    results: dict
    counts: dict


@dataclass
class Mechanism:
    """One mechanism, shown with one guest, off and on.

    @name: in the table
    @prefix: of its statistics' names, without the last '-'
    @used: name (without prefix) of the count that must be above 0 when on
    @did: text from the results of a run
    @off, @on: options of the guest that differ (machine=, devices=, args=), or
        a function that returns them, if they need the guest's kernel
    @options: options of the guest that are the same in both
    @needs: (machine property) that the QEMU must have
    @script: for a Linux guest; it must 'park counts' at its end
    @payload: for a bare-metal guest instead: name of the source in bare/
    @possible: returns a reason why this cannot be shown here, or None
    """
    name: str
    prefix: str
    used: str
    did: Callable[[dict], str]
    on: object
    needs: Optional[str] = None
    off: object = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    script: Optional[str] = None
    payload: Optional[str] = None
    possible: Callable[[], Optional[str]] = lambda: None

    def slug(self, state):
        """Name of the directory with the logs of a run."""
        letters = ''.join(c if c.isalnum() else '-' for c in self.name)
        return f'demo-{letters.lower()}-{state}'

    def counts(self, vm):
        """Return this mechanism's statistics, without the prefix."""
        found = {**hotpath_counters(vm, 'vm'), **hotpath_counters(vm, 'vcpu')}
        start = self.prefix + '-'
        return {name[len(start):]: value for name, value in found.items()
                if name.startswith(start)}

    def run(self, state):
        """Run the guest with the mechanism 'off' or 'on'."""
        chosen = self.on if state == 'on' else self.off
        options = {**self.options, **(chosen() if callable(chosen)
                                      else chosen)}
        if self.payload:
            return self._run_bare(state, options)
        with Guest(self.slug(state), self.script, **options) as guest:
            guest.wait_parked('counts')
            counts = self.counts(guest.vm)
            guest.resume()
            return Run(guest.finish().results, counts)

    def _run_bare(self, state, options):
        counts = {}
        results = run_bare(self.payload, name=self.slug(state),
                           at_end=lambda g: counts.update(self.counts(g.vm)),
                           **options)
        return Run(results, counts)

    def problem(self, off, on):
        """Return why the two runs do not show the mechanism, or None."""
        if off.results != on.results:
            return 'the guest saw other values with it on than with it off'
        if any(off.counts.values()):
            return f'it counted although it was off: {off.counts}'
        if not on.counts.get(self.used):
            return (f'it was on and not used: "{self.prefix}-{self.used}" is '
                    f'{on.counts.get(self.used, "absent")}')
        return None


def all_mechanisms():
    """Return the entries of all files in mechanisms/, in order of name."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    found = []
    for path in sorted(FOLDER.glob('*.py')):
        found += importlib.import_module(path.stem).MECHANISMS
    return found
