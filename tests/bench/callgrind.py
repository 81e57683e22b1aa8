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
            f'--callgrind-out-file={folder}/callgrind.%p', *options]


def instructions(profile):
    """Return the number of instructions that a profile holds."""
    text = Path(profile).read_text(errors='replace')
    found = re.findall(r'^(?:summary|totals): (\d+)', text, re.M)
    return int(found[-1]) if found else 0


def profiles(folder):
    """Return the numbered partial profiles in the order they were written."""
    def number(path):
        return int(path.name.rsplit('.', 1)[1])
    parts = [p for p in Path(folder).glob('callgrind.*.*')
             if p.name.rsplit('.', 1)[1].isdigit()]
    return sorted(parts, key=number)
