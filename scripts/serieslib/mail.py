# SPDX-License-Identifier: GPL-2.0-or-later
"""Patches as mail: parse, check and render them, always to the same bytes."""
import email.header
import email.utils
import re
import time

from .git import IDENTITY, SeriesError, decode, encode

FIRST_LINE = f"From {'0' * 40} Mon Sep 17 00:00:00 2001"
PATCH_NAME = re.compile(r'^(\d{4})-[A-Za-z0-9._-]+\.patch$')
SUBJECT = re.compile(r'^[^\s:\[\]]+: \S')
SUBJECT_COLUMNS = 76
STATUS = re.compile(r'^(Pending( \[.+\])?|Submitted \[.+\]|Backport \[.+\]|'
                    r'Denied( \[.+\])?|Inactive-Upstream \[.+\]|'
                    r'Inappropriate \[.+\])$')
TRAILER = re.compile(r'^([A-Za-z][A-Za-z0-9-]*): *(.*)$')
# Where git am would end a message, or begin another one.
CUTS = re.compile(r'^(---\s*$|--- \S|diff -|Index: )')
FROM_LINE = re.compile(r'^From .*\d:?\d\d:\d\d +\d\d')
IN_BODY_HEADER = re.compile(r'^(From|Date|Subject|Content-[A-Za-z-]+|'
                            r'MIME-Version|\[PATCH.*): ', re.I)


class Patch:
    """A message and a diff; ``date`` is git's raw form, seconds and zone."""

    def __init__(self, name, message, date, diff=b'', diff_line=0):
        self.name = name
        self.message = tidy(message)
        self.subject, _, rest = self.message.partition('\n')
        self.body = rest.strip('\n')
        self.date = date
        self.diff = diff
        self.diff_line = diff_line

    @property
    def slug(self):
        """The name without number and suffix."""
        return self.name[5:-len('.patch')]

    def trailers(self):
        """The (key, value) pairs of the last paragraph, if it is trailers."""
        found = []
        for line in self.body.split('\n\n')[-1].split('\n'):
            match = TRAILER.match(line)
            if match:
                found.append(match.groups())
            elif found and line[:1] in ' \t':
                found[-1] = (found[-1][0], f'{found[-1][1]} {line.strip()}')
            else:
                return []
        return found

    def trailer(self, key):
        return [v for k, v in self.trailers() if k.lower() == key.lower()]

    def files(self):
        """The own files that the Files: trailers name."""
        return ' '.join(self.trailer('Files')).split()

    def stray_files_line(self):
        """A Files: line that is not a trailer, so that it would be lost."""
        lines = [line for line in self.body.split('\n')
                 if line.lower().startswith('files:')]
        return lines[0] if len(lines) != len(self.trailer('Files')) else None


def tidy(message):
    """Clean a message as git does, so that it survives the mail."""
    head, _, body = message.strip('\n \t').partition('\n\n')
    subject = ' '.join(head.split())
    lines = [line.rstrip() for line in body.split('\n')]
    body = re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)).strip('\n')
    return f'{subject}\n\n{body}\n' if body else f'{subject}\n'


def patch_name(number, subject):
    slug = re.sub(r'[^A-Za-z0-9._]+', '-', subject.lower())
    slug = re.sub(r'\.{2,}', '.', slug)[:52].strip('-.')
    return f'{number:04d}-{slug or "patch"}.patch'


def message_problem(patch):
    """Why git am would not reproduce this message; None if it would."""
    if patch.subject.startswith('['):
        return (f'has a subject that begins with a bracket ({patch.subject}): '
                'git am would strip it, write "subsystem: imperative"')
    if patch.message != patch.message.encode(
            'utf-8', 'replace').decode('utf-8') or '\0' in patch.message:
        return 'has a message that is not UTF-8'
    for line in patch.body.split('\n'):
        if CUTS.match(line):
            return (f'has the message line "{line}", where git am would end '
                    'the message: indent the line')
        if FROM_LINE.match(line):
            return (f'has the message line "{line}", where git am would begin '
                    'another mail: indent the line')
    if IN_BODY_HEADER.match(patch.body):
        return (f'has a message that begins like a mail header '
                f'("{patch.body.splitlines()[0]}"): write a sentence first')
    return None


def parse_date(text):
    """Turn a Date: header into git's raw form."""
    zone = re.search(r'[+-]\d{4}$', text.strip())
    try:
        seconds = int(email.utils.parsedate_to_datetime(text).timestamp())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return f'{seconds} {zone.group()}' if zone and seconds >= 0 else None


def format_date(raw):
    seconds, zone = raw.split()
    minutes = int(zone[1:3]) * 60 + int(zone[3:5])
    shift = (-60 if zone[0] == '-' else 60) * minutes
    at = time.gmtime(int(seconds) + shift)
    day = ('Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun')[at.tm_wday]
    month = ('Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep',
             'Oct', 'Nov', 'Dec')[at.tm_mon - 1]
    return (f'{day}, {at.tm_mday} {month} {at.tm_year} {at.tm_hour:02d}:'
            f'{at.tm_min:02d}:{at.tm_sec:02d} {zone}')


def render(patch, number=None, total=None):
    """Return the mail of a patch.  Its diff starts with the diffstat."""
    tag = f'[PATCH {number}/{total}]' if total else '[PATCH]'
    lines = [FIRST_LINE, f'From: {IDENTITY}',
             f'Date: {format_date(patch.date)}',
             f'Subject: {tag} {patch.subject}']
    if not patch.message.isascii():
        lines += ['MIME-Version: 1.0',
                  'Content-Type: text/plain; charset=UTF-8',
                  'Content-Transfer-Encoding: 8bit']
    lines += ['', patch.body] if patch.body else ['']
    return encode('\n'.join(lines) + '\n---\n') + patch.diff


def split_mail(lines):
    """Return (header lines, body lines, index of the first line after)."""
    start = 1 if lines and lines[0].startswith(b'From ') else 0
    try:
        blank = lines.index(b'', start)
    except ValueError:
        return lines[start:], [], len(lines)
    end = blank + 1
    while end < len(lines) and lines[end] != b'---' \
            and not lines[end].startswith(b'diff --git '):
        end += 1
    return lines[start:blank], lines[blank + 1:end], end


def parse_headers(lines):
    headers, key = {}, None
    for line in lines:
        if line[:1] in (b' ', b'\t') and key:
            headers[key] += b' ' + line.strip()
            continue
        name, colon, value = line.partition(b':')
        key = name.decode('ascii', 'replace').lower() if colon else None
        if key:
            headers[key] = value.strip()
    return headers


def decode_subject(raw):
    try:
        text = str(email.header.make_header(
            email.header.decode_header(raw.decode('utf-8'))))
    except (UnicodeDecodeError, LookupError, ValueError):
        return None
    return re.sub(r'^\[PATCH[^]]*\]\s*', '', text)


def parse_mail(name, data):
    """Parse a patch file; refuse what git am would not take as it is meant."""
    def refuse(why):
        raise SeriesError(f'patches/{name} {why}')

    lines = data.split(b'\n')
    head, body, end = split_mail(lines)
    headers = parse_headers(head)
    for key in ('from', 'date', 'subject'):
        if key not in headers:
            refuse(f'has no {key.capitalize()}: header: write it as mail '
                   '(scripts/series export does)')
    if headers.get('content-transfer-encoding', b'8bit').lower() \
            not in (b'7bit', b'8bit'):
        refuse('is transfer-encoded: write it as plain UTF-8')
    author = decode(headers['from'])
    if author != IDENTITY:
        refuse(f'is from "{author}": the author must be "{IDENTITY}"')
    date = parse_date(decode(headers['date']))
    if not date:
        refuse(f"has the date \"{decode(headers['date'])}\": write it like "
               '"Tue, 3 Nov 2026 10:00:00 +0000"')
    subject = decode_subject(headers['subject'])
    if subject is None:
        refuse('has a subject that is not UTF-8')
    while end < len(lines) and not lines[end].startswith(b'diff --git '):
        end += 1
    diff = b'\n'.join(lines[end:])
    text = decode(b'\n'.join(body))
    if not subject:
        refuse('has no subject')
    patch = Patch(name, f'{subject}\n\n{text}', date, diff, end)
    why = message_problem(patch)
    if why:
        refuse(why)
    return patch
