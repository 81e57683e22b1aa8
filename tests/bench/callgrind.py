# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the instructions of user space, with valgrind's callgrind."""
import re
import shutil
from pathlib import Path


class BenchError(Exception):
    """Something a benchmark needs is missing; the text says what to do."""


def callgrind(folder, *options):
    """Return the command to put in front of a program; profiles to folder."""
    if not shutil.which('valgrind'):
        raise BenchError('valgrind is not installed: run scripts/bootstrap')
    return [str(Path(__file__).with_name('no-io-uring')), 'valgrind',
            '--tool=callgrind', '-q', '--error-limit=no',
            # each of several profiles can be read alone
            '--compress-strings=no',
            f'--callgrind-out-file={folder}/callgrind.%p', *options]


def instructions(profile):
    """Return the number of instructions that a profile holds."""
    text = Path(profile).read_text(errors='replace')
    found = re.findall(r'^(?:summary|totals): (\d+)', text, re.M)
    return int(found[-1]) if found else 0


def line_costs(profile):
    """Return {(file name, line): instructions} of a profile, without those of
    the functions that a line calls."""
    costs, file, line, called = {}, None, 0, False
    for text in Path(profile).read_text(errors='replace').splitlines():
        head, _, rest = text.partition('=')
        if head in ('fl', 'fi', 'fe'):
            file = Path(rest).name
        elif head == 'calls':
            called = True
        elif text[:1] in tuple('0123456789+-*'):
            place, *cost = text.split()
            line = (line if place == '*' else line + int(place)
                    if place[0] in '+-' else int(place))
            if cost and not called:
                costs[file, line] = costs.get((file, line), 0) + int(cost[0])
            called = False
    return costs


def function_lines(source, names):
    """Return {(file name, line)} of the named functions in a C file."""
    found, inside = set(), False
    for number, text in enumerate(Path(source).read_text().splitlines(), 1):
        inside = inside or bool(re.match(
            rf'\S.*?\b(?:{"|".join(names)})\(|(?:{"|".join(names)})\(', text))
        if inside:
            found.add((Path(source).name, number))
        inside = inside and text != '}'
    return found


def profiles(folder):
    """Return the numbered partial profiles in the order they were written."""
    def number(path):
        return int(path.name.rsplit('.', 1)[1])
    parts = [p for p in Path(folder).glob('callgrind.*.*')
             if p.name.rsplit('.', 1)[1].isdigit()]
    return sorted(parts, key=number)
