#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the mechanisms at work: each guest once with one off, once with it on.

usage: tests/guest/demo.py [NAME...]

Prints a table with the mechanisms' own statistics, read while the guest still
ran.  Exits 0 only when each guest completed with the same results off and on,
and the statistics show that the mechanism was really used.  NAME selects
entries that contain it.  QEMU_BUILD names another build than build/out.
"""
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from guest import GuestFailure, machine_has                 # noqa: E402
from hotpath_paths import SetupError, qemu_binary, report_dir  # noqa: E402
from mechanism import all_mechanisms                        # noqa: E402


def progress(text, end='\n'):
    print(text, end=end, flush=True)


def show(mechanism):
    """Run one mechanism off and on; return (rows, problem or None)."""
    runs, rows = {}, []
    for state in ('off', 'on'):
        progress(f'  {mechanism.name}: {state} ...', end=' ')
        start = time.monotonic()
        runs[state] = run = mechanism.run(state)
        progress(f'{time.monotonic() - start:.1f} s')
        rows.append((mechanism.name, state, mechanism.did(run.results),
                     run.counts))
    return rows, mechanism.problem(runs['off'], runs['on'])


def show_all(chosen):
    rows, problems, skipped = [], [], []
    for mechanism in chosen:
        reason = mechanism.possible()
        if reason:
            skipped.append(f'{mechanism.name}: {reason}')
            continue
        if mechanism.needs and not machine_has(mechanism.needs):
            problems.append(f'{mechanism.name}: {qemu_binary()} has no machine '
                            f'property "{mechanism.needs}"; is it the series '
                            'build? (make build)')
            continue
        try:
            new, problem = show(mechanism)
        except GuestFailure as err:
            progress('failed')
            new, problem = [], str(err)
        rows += new
        if problem:
            problems.append(f'{mechanism.name}: {problem}')
    return rows, problems, skipped


def print_table(rows):
    head = ('mechanism', '', 'what the guest did', 'its statistics')
    cells = [head] + [
        (name if state == 'off' else '', state, did,
         ', '.join(f'{k} {v}' for k, v in counts.items() if v) or 'none')
        for name, state, did, counts in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    print()
    for row in cells:
        print('  '.join([row[i].ljust(widths[i]) for i in range(3)]
                        + [row[3]]))
    print()


def main(argv):
    if any(a.startswith('-') for a in argv):
        print(__doc__.strip())
        return 0 if argv[0] in ('-h', '--help') else 2
    start = time.monotonic()
    chosen = [m for m in all_mechanisms()
              if not argv or any(a in m.name for a in argv)]
    if not chosen:
        print(f'demo: no mechanism is called {" ".join(argv)}')
        return 2
    try:
        progress(f'QEMU: {qemu_binary()}')
        subprocess.run([str(HERE / 'prepare')], check=True)
        rows, problems, skipped = show_all(chosen)
    except SetupError as err:
        print(f'demo: {err}')
        return 1
    except subprocess.CalledProcessError:
        return 1        # prepare has said why
    if rows:
        print_table(rows)
    report = report_dir() / 'demo.json'
    report.write_text(json.dumps({'rows': rows, 'problems': problems,
                                  'skipped': skipped}, indent=1) + '\n')
    for line in skipped:
        print(f'skipped: {line}')
    for line in problems:
        print(f'FAILED: {line}')
    print(f'{"failed" if problems else "done"} after '
          f'{time.monotonic() - start:.0f} s; logs in {report.parent}')
    return 1 if problems or not rows else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
