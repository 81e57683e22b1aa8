# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of the bench of interrupt affinity that are too few."""
import sys
import tempfile
import unittest
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
for folder in 'bench', 'guest', 'lab':
    sys.path.insert(0, str(TESTS / folder))

import bench_irq_affinity as bench                          # noqa: E402
import report                                               # noqa: E402


class Lab:
    def __init__(self, total):
        self.total = total

    def irqs(self, address):
        return [40]

    def run(self, command, limit_s):
        return f'{self.total} {self.total // 2} {self.total // 4} 9 1500'


class Guest:
    pid = 1
    vm = None

    def __init__(self):
        self.vm = self

    def vcpu_threads(self):
        return [2]

    def cmd(self, name):
        return [{'moves': 7}]


def phase(total):
    return bench.phase(Lab(total), Guest(), '0000:01:00.0', 200)


class TooFew(unittest.TestCase):
    def test_no_share_of_few(self):
        for total, local in (0, None), (99, None), (100, 50):
            self.assertEqual(phase(total)['local'], local)
            self.assertEqual(phase(total)['ipis'], local and 0.25)

    def result(self, off, on):
        found = {('moved', 'off'): [phase(1000), phase(off)],
                 ('moved', 'on'): [phase(1000), phase(on)]}
        row = bench.row_of(found, 'moved', 'local', '%', ['off', 'on'], 'off')
        return {'name': 'n', 'title': 't', 'machine': 'm', 'date': 'd',
                'tables': [{'title': 't', 'text': '', 'ways': ['off', 'on'],
                            'rows': [row]}]}

    def test_report(self):
        text = report.as_text(self.result(1000, 200))
        self.assertRegex(text, r'moved +50\.0 +50\.0 +1\.00')
        text = report.as_text(self.result(1000, 3))
        self.assertRegex(text, r'\(too few interrupts: on\) +50\.0 +- +-')
        text = report.as_text(self.result(0, 3))
        self.assertRegex(text, r'\(too few interrupts: off, on\) +- +- +-')

    def test_page(self):
        for off, on in (1000, 3), (0, 0):
            with tempfile.TemporaryDirectory() as folder:
                page = report.section(self.result(off, on), Path(folder))
                self.assertIn('too few interrupts', page)
                self.assertIn('<td class=ratio>-</td>', page)


if __name__ == '__main__':
    unittest.main()
