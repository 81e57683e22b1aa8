# SPDX-License-Identifier: GPL-2.0-or-later
"""The suite counts what it tests, and nothing else."""
import os
import unittest


class Support(unittest.TestCase):
    def names(self, suite):
        for item in suite:
            if isinstance(item, unittest.TestSuite):
                yield from self.names(item)
            else:
                yield item.id().rpartition('.')[2]

    def test_nothing_but_tests_is_collected(self):
        here = os.path.dirname(os.path.abspath(__file__))
        found = list(self.names(unittest.TestLoader().discover(here)))
        self.assertGreater(len(found), 200)
        self.assertEqual([n for n in found if not n.startswith('test_')], [])


if __name__ == '__main__':
    unittest.main()
