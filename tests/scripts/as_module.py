# SPDX-License-Identifier: GPL-2.0-or-later
"""Load one of the project's scripts, which have no suffix, as a module."""
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / 'scripts'


def load(name):
    """Return a new module made from scripts/NAME."""
    loader = importlib.machinery.SourceFileLoader(
        name.replace('-', '_'), str(SCRIPTS / name))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(loader.name, loader))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module
