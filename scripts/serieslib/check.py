# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/series check: one line per item, in the manner of TAP."""
import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess

from . import commands, mail, own as own_files
from .git import SeriesError, decode
from .sandbox import Sandbox

BUDGET = 0.20
VERBS = ('add|allow|avoid|call|chang|clean|convert|count|creat|delet|drop|'
         'expos|extend|extract|factor|fix|hook|implement|improv|includ|'
         'introduc|let|mak|mov|notify|notifi|pass|prepar|print|provid|remov|'
         'renam|replac|report|run|set|split|support|switch|test|track|updat|'
         'us|wir|wrap|writ')
NOT_IMPERATIVE = re.compile(rf'^({VERBS})(e?s|e?d|ing)$', re.I)
NAMES = ('patches can be read', 'every own file has one owner',
         'applies on the pristine base without offsets',
         'export is a no-op', 'messages and trailers', 'checkpatch',
         'git am reproduces the branch', 'hook budget')


class Skip(Exception):
    """An item that cannot run here; the text is the reason."""


class Check:
    def __init__(self, tree):
        self.tree = tree
        self.series = None

    def items(self):
        """Return [(name, function that returns a list of problems)]."""
        return list(zip(NAMES, (
            self.read, self.ownership, self.applies, self.export_noop,
            self.messages, self.checkpatch, self.git_am, self.budget)))

    def run(self):
        """Print the items; return whether all are good."""
        good = True
        print(f'1..{len(NAMES)}')
        for number, (name, function) in enumerate(self.items(), 1):
            try:
                problems = function()
            except Skip as why:
                print(f'ok {number} {name} # SKIP {why}', flush=True)
                continue
            except SeriesError as err:
                problems = [str(err)]
            if not problems:
                print(f'ok {number} {name}', flush=True)
                continue
            good = False
            print(f'not ok {number} {name}: {problems[0]}')
            for problem in problems[1:]:
                print(f'#   {problem}')
        return good

    def need(self, what):
        if not hasattr(self.series, what):
            raise SeriesError('not tried, because of the failure above')

    def read(self):
        self.series = commands.Series(self.tree)
        return []

    def ownership(self):
        """Each own file once; nothing named that does not exist."""
        self.need('patches')
        own = own_files.scan(self.tree.root)
        problems = [f'{own_files.shown(path)} is named by no patch'
                    for path in sorted(set(own) - set(self.series.owner))]
        problems += [f'{self.series.owner[path].name} names {path}, but there '
                     f'is no {own_files.shown(path)}'
                     for path in sorted(set(self.series.owner) - set(own))]
        return problems

    def applies(self):
        self.need('patches')
        self.series.fold_here()
        return [f'{item.patch.name}: {offset}' for item in self.series.folded
                for offset in item.offsets]

    def export_noop(self):
        """The bytes that export would write are those of patches/."""
        self.need('folded')
        mails = commands.folded_mails(self.series, complete=False)
        have = self.series.contents
        problems = [f'{name} would be written' for name in mails
                    if name not in have]
        problems += [f'{name} would be removed' for name in have
                     if name not in mails]
        problems += [f'{name} would change, first in line '
                     f'{first_difference(have[name], data)}'
                     for name, data in mails.items()
                     if name in have and have[name] != data]
        if problems:
            problems.append('put right with: scripts/series apply && '
                            'scripts/series export')
        return problems

    def messages(self):
        self.need('patches')
        problems = []
        for number, patch in enumerate(self.series.patches, 1):
            if int(patch.name[:4]) != number:
                problems.append(f'{patch.name} is number {number}')
            problems += [f'{patch.name}: {why}'
                         for why in message_problems(patch)]
        return problems

    def checkpatch(self):
        """Every complete patch is clean, or excepted with a reason."""
        self.need('folded')
        if not shutil.which('perl'):
            raise Skip('perl is not installed: run scripts/bootstrap')
        script = self.tree.file('scripts/checkpatch.pl')
        if not os.path.exists(script):
            raise SeriesError(f'{script} is missing: scripts/series apply')
        mails = commands.folded_mails(self.series, complete=True)
        excepted = read_exceptions(self.tree.root)
        runner = Checkpatch(self.tree, script)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            reports = dict(zip(mails, pool.map(runner.report, mails.items())))
        runner.save()
        problems, used = [], set()
        for name, lines in reports.items():
            for line in lines:
                match = [e for e in excepted if e[0] == slug(name)
                         and e[1] in line]
                used.update(match)
                if not match:
                    problems.append(f'{name}: {line}')
        problems += [f'patches/checkpatch.ignore: "{e[0]} {e[1]}" excepts '
                     'nothing: drop it' for e in excepted if e not in used]
        return problems

    def git_am(self):
        """The complete mails give the same commits, by git's own tools."""
        self.need('folded')
        mails = commands.folded_mails(self.series, complete=True)
        with Sandbox(self.tree, self.series.base) as sandbox:
            why = sandbox.am(mails) if mails else None
            if why:
                return [f'git am: {why}']
            head = sandbox.head()
        if head == self.series.tip:
            return []
        same = not list(self.tree.git.changes(head, self.series.tip))
        return ['git am gives ' + (f'other messages or dates: {head[:12]}'
                                   if same else f'another tree: {head[:12]}')
                + f' instead of {self.series.tip[:12]}']

    def budget(self):
        self.need('folded')
        total = commands.totals(commands.figures(self.series))
        if total['hook_share'] <= BUDGET:
            return []
        return [f"{total['hook_lines']} hook lines are "
                f"{100 * total['hook_share']:.1f} % of all, the budget is "
                f'{100 * BUDGET:.0f} %: move code to own files']


def message_problems(patch):
    """Return what is wrong with the message of a patch."""
    problems, subject = [], patch.subject
    if not mail.SUBJECT.match(subject):
        problems.append(f'the subject "{subject}" is not "subsystem: '
                        'imperative"')
    if len(subject) > mail.SUBJECT_COLUMNS:
        problems.append(f'the subject has {len(subject)} columns, '
                        f'{mail.SUBJECT_COLUMNS} are the limit')
    verb = subject.partition(': ')[2].split(' ')[0]
    if NOT_IMPERATIVE.match(verb):
        problems.append(f'the subject says "{verb}": use the imperative')
    if subject.endswith('.'):
        problems.append('the subject ends in a full stop')
    status = patch.trailer('Upstream-Status')
    if len(status) != 1:
        problems.append(f'has {len(status)} Upstream-Status: trailers in its '
                        'last paragraph, needs one')
    elif not mail.STATUS.match(status[0]):
        problems.append(f'"Upstream-Status: {status[0]}" is not in '
                        "OpenEmbedded's vocabulary")
    if patch.stray_files_line():
        problems.append(f'"{patch.stray_files_line()}" is not in the last '
                        'paragraph, so it is no trailer')
    if 'signed-off-by:' in patch.message.lower():
        problems.append('has a Signed-off-by')
    return problems


def first_difference(old, new):
    pairs = zip(old.split(b'\n'), new.split(b'\n'))
    for number, (before, after) in enumerate(pairs, 1):
        if before != after:
            return number
    return min(old.count(b'\n'), new.count(b'\n')) + 1


def slug(name):
    return name[5:-len('.patch')]


def read_exceptions(root):
    """Read patches/checkpatch.ignore: slug, "part of the text", reason."""
    path = os.path.join(root, 'patches', 'checkpatch.ignore')
    found = []
    if not os.path.exists(path):
        return found
    with open(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                words = shlex.split(line, comments=True)
            except ValueError as err:
                raise SeriesError(f'{path}:{number}: {err}')
            if words and len(words) < 3:
                raise SeriesError(f'{path}:{number}: write: patch-slug '
                                  '"part of the message" reason')
            if words:
                found.append((words[0], words[1]))
    return found


class Checkpatch:
    """Runs checkpatch.pl; remembers the patches that it reported on."""

    def __init__(self, tree, script):
        self.tree = tree
        self.script = script
        self.cache_path = os.path.join(tree.private, 'checkpatch.json')
        with open(script, 'rb') as stream:
            self.version = hashlib.sha1(stream.read()).hexdigest()
        try:
            with open(self.cache_path) as stream:
                self.cache = json.load(stream)
        except (FileNotFoundError, ValueError):
            self.cache = {}
        self.used = {}

    def save(self):
        with open(self.cache_path, 'w') as out:
            json.dump(self.used, out)

    def report(self, item):
        """Return the lines that checkpatch prints about a mail."""
        name, data = item
        key = hashlib.sha1(data).hexdigest() + self.version
        if key not in self.cache:
            self.cache[key] = self.run(name, data)
        self.used[key] = self.cache[key]
        return self.cache[key]

    def run(self, name, data):
        folder = os.path.join(self.tree.root, 'build', 'scratch')
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name)
        with open(path, 'wb') as out:
            out.write(data)
        done = subprocess.run(
            ['perl', self.script, '--strict', '--no-signoff', '--color=never',
             '--terse', '--no-summary', '--patch', path],
            cwd=self.tree.path, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.unlink(path)
        lines = [line.replace(path + ':', 'line ') for line in
                 decode(done.stdout).splitlines() if line.strip()]
        if done.returncode and not lines:
            lines = [f'checkpatch.pl ends with status {done.returncode}']
        return lines if done.returncode else found_in(lines)


def found_in(lines):
    return [line for line in lines
            if re.search(r'\b(ERROR|WARNING|CHECK):', line)]
