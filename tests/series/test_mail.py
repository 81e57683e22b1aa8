# SPDX-License-Identifier: GPL-2.0-or-later
"""Patches as mail: parsing, refusing, rendering."""
import unittest

import support  # noqa: F401  (makes serieslib importable)
from serieslib import mail
from serieslib.git import IDENTITY, SeriesError

HEAD = ('From 0000000000000000000000000000000000000000 '
        'Mon Sep 17 00:00:00 2001\n'
        f'From: {IDENTITY}\n'
        'Date: Tue, 3 Nov 2026 10:00:00 +0100\n')
SUBJECT = 'Subject: [PATCH] vl: be quick\n'
REST = ('\nWhy.\n\nUpstream-Status: Pending\nFiles: a.c b.c\nFiles: c.c\n'
        '---\n a.c | 1 +\n\ndiff --git a/x b/x\n')


def parse(text, name='0001-x.patch'):
    data = text if isinstance(text, bytes) else text.encode()
    return mail.parse_mail(name, data)


class Parse(unittest.TestCase):
    def test_all_parts(self):
        patch = parse(HEAD + SUBJECT + REST)
        self.assertEqual(patch.subject, 'vl: be quick')
        self.assertEqual(patch.date, '1793696400 +0100')
        self.assertEqual(patch.files(), ['a.c', 'b.c', 'c.c'])
        self.assertEqual(patch.trailer('upstream-status'), ['Pending'])
        self.assertEqual(patch.diff, b'diff --git a/x b/x\n')
        self.assertEqual(patch.diff_line, 13)
        self.assertEqual(patch.slug, 'x')

    def test_render_is_the_inverse(self):
        patch = parse(HEAD + SUBJECT + REST)
        patch.diff = b' a.c | 1 +\n\ndiff --git a/x b/x\n'
        self.assertEqual(mail.render(patch).decode(), HEAD + SUBJECT + REST)

    def test_numbered_and_unnumbered_subjects(self):
        for tag in ('', '[PATCH] ', '[PATCH 3/9] ', '[PATCH v2 03/11] '):
            text = HEAD + f'Subject: {tag}vl: be quick\n' + REST
            self.assertEqual(parse(text).subject, 'vl: be quick')

    def test_folded_and_encoded_subject(self):
        text = HEAD + ('Subject: [PATCH] =?UTF-8?q?vl:=20caf=C3=A9=20?=\n'
                       ' =?UTF-8?q?and=20more?=\n') + REST
        self.assertEqual(parse(text).subject, 'vl: caf\u00e9 and more')
        text = HEAD + 'Subject: [PATCH] vl: be\n quick\n' + REST
        self.assertEqual(parse(text).subject, 'vl: be quick')

    def test_folded_trailer(self):
        patch = parse(HEAD + SUBJECT + '\nFiles: a.c\n b.c\n---\n')
        self.assertEqual(patch.files(), ['a.c', 'b.c'])

    def test_files_outside_the_trailers(self):
        patch = parse(HEAD + SUBJECT + '\nFiles: a.c\n\nWhy.\n---\n')
        self.assertEqual(patch.files(), [])
        self.assertEqual(patch.stray_files_line(), 'Files: a.c')

    def test_prose_with_colons_is_no_trailer(self):
        patch = parse(HEAD + SUBJECT + '\nIt does this:\nFiles: a.c\n'
                      'and not that.\n---\n')
        self.assertEqual(patch.files(), [])

    def test_diff_without_separator(self):
        patch = parse(HEAD + SUBJECT + '\nWhy.\n\ndiff --git a/x b/x\n')
        self.assertEqual(patch.body, 'Why.')
        self.assertEqual(patch.diff, b'diff --git a/x b/x\n')

    def refused(self, text, word):
        with self.assertRaisesRegex(SeriesError, word) as caught:
            parse(text)
        self.assertIn('patches/0001-x.patch', str(caught.exception))

    def test_missing_parts(self):
        self.refused('', 'no From: header')
        self.refused('diff --git a/x b/x\n', 'no From: header')
        self.refused(HEAD + '\nWhy.\n---\n', 'no Subject: header')
        self.refused(HEAD + 'Subject: [PATCH]\n\nWhy.\n---\n', 'no subject')

    def test_author(self):
        for who in ('Someone <a@b.invalid>', 'J\u00fcrgen <a@b.invalid>',
                    '=?UTF-8?q?J=C3=BCrgen?= <a@b.invalid>'):
            text = HEAD.replace(IDENTITY, who) + SUBJECT + REST
            self.refused(text, 'the author must be')

    def test_dates(self):
        for date in ('yesterday', '2026-11-03', 'Tue, 3 Nov 2026 10:00:00',
                     'Tue, 33 Nov 2026 10:00:00 +0100', ''):
            text = HEAD.replace('Tue, 3 Nov 2026 10:00:00 +0100', date)
            self.refused(text + SUBJECT + REST, 'date')

    def test_encodings(self):
        text = HEAD + SUBJECT + 'Content-Transfer-Encoding: base64\n' + REST
        self.refused(text, 'transfer-encoded')
        self.refused((HEAD + SUBJECT).encode() + b'\ncaf\xe9\n---\n', 'UTF-8')
        self.refused(HEAD.encode() + b'Subject: caf\xe9\n\nx\n---\n', 'UTF-8')
        self.refused(HEAD + 'Subject: =?nonsense?q?x?=\n' + REST, 'UTF-8')

    def test_subject_in_brackets(self):
        self.refused(HEAD + 'Subject: [PATCH] [vl] x\n' + REST, 'bracket')

    def test_crlf_in_the_diff_stays(self):
        patch = parse(HEAD + SUBJECT + '\nWhy.\n---\ndiff --git a/x b/x\n'
                      '+a\r\n')
        self.assertTrue(patch.diff.endswith(b'+a\r\n'))


class Names(unittest.TestCase):
    def test_file_names(self):
        for subject, name in (
                ('hw/misc: Add a thing', '0007-hw-misc-add-a-thing.patch'),
                ('vl: x..y', '0007-vl-x.y.patch'),
                ('vl: use foo_bar()', '0007-vl-use-foo_bar.patch'),
                ('\u65e5\u672c', '0007-patch.patch')):
            self.assertEqual(mail.patch_name(7, subject), name)
        long = mail.patch_name(1, 'x' * 200)
        self.assertEqual(len(long), 5 + 52 + len('.patch'))
        self.assertRegex(long, mail.PATCH_NAME)

    def test_status_vocabulary(self):
        for good in ('Pending', 'Pending [why]', 'Submitted [list]',
                     'Backport [abc]', 'Denied', 'Denied [why]',
                     'Inactive-Upstream [2020]',
                     'Inappropriate [downstream series]'):
            self.assertRegex(good, mail.STATUS)
        for bad in ('', 'pending', 'Submitted', 'Backport', 'Inappropriate',
                    'Inappropriate []', 'Accepted [x]', 'Pending why',
                    'Inappropriate [x] y'):
            self.assertNotRegex(bad, mail.STATUS)


if __name__ == '__main__':
    unittest.main()
