# SPDX-License-Identifier: GPL-2.0-or-later
"""Where things are: the repository, the builds, the reports.

Environment: QEMU_BUILD names the build directory to test (default build/out,
relative to the repository).
"""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / 'build'
GUEST_DIR = BUILD / 'guest'
REPORT = BUILD / 'report'


class SetupError(Exception):
    """Something that a test needs is missing; the text says what to do."""


def qemu_build():
    """Return the build directory under test."""
    named = Path(os.environ.get('QEMU_BUILD', 'build/out'))
    return named if named.is_absolute() else ROOT / named


FIRMWARE = ('/usr/share/seabios', '/usr/share/qemu', '/usr/lib/ipxe/qemu')


def link_firmware(build):
    """Let programs that run from a build directory find the firmware.

    There QEMU looks only under qemu-bundle/, which the build fills with
    upstream's own images; the distribution's are elsewhere.
    """
    for folder in FIRMWARE:
        link = build / 'qemu-bundle' / folder.lstrip('/')
        if os.path.isdir(folder) and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(folder)
            except FileExistsError:     # another test was faster
                pass


def qemu_binary(name='qemu-system-x86_64'):
    """Return the path of a program of the build under test."""
    path = qemu_build() / name
    if (qemu_build() / 'qemu-bundle').is_dir():
        link_firmware(qemu_build())
    if not os.access(path, os.X_OK):
        raise SetupError(f'{path} is missing (or no program): run "make '
                         'build", or name another build in QEMU_BUILD')
    return path


def use_qemu_python():
    """Make QEMU's own Python packages (qemu.machine, qemu.qmp) importable."""
    for tree in (BUILD / 'tree', BUILD / 'base' / 'tree'):
        if (tree / 'python' / 'qemu').is_dir():
            folder = str(tree / 'python')
            if folder not in sys.path:
                sys.path.insert(0, folder)
            return
    raise SetupError('no QEMU source tree in build/: run "make tree"')


def report_dir(*parts):
    """Create and return build/report/PARTS."""
    folder = REPORT.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


NOTES = []      # what scripts/check tells above its closing line


def note(text):
    """Keep something that the reader of the results must know."""
    print(f'note: {text}', flush=True)
    NOTES.append(text)
