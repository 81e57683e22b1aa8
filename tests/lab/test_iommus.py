# SPDX-License-Identifier: GPL-2.0-or-later
"""The other IOMMUs: a virtual function does traffic, as behind Intel's."""
import unittest

import labtest
import traffic


@labtest.long_test("test_igb_vf is run behind Intel's")
class Amd(traffic.TrafficTest):
    lab_name = 'amd'
    lab_options = {'iommu': 'amd'}

    def test_igb_vf(self):
        self.nic('igbvf-amd', self.vf(), 'igbvf', 2)


@labtest.long_test("test_igb_vf is run behind Intel's")
class Virtio(traffic.TrafficTest):
    """Without interrupt remapping: VFIO must be told to go on."""
    lab_name = 'virtio'
    lab_options = {'iommu': 'virtio'}

    def test_igb_vf(self):
        self.nic('igbvf-virtio', self.vf(), 'igbvf', 2)


if __name__ == '__main__':
    unittest.main()
