"""What refines the segmentation loss, on cases that can be worked out by hand."""

import math

import pytest
import torch

from da.supervised import enet_weights, median_frequency_weights, pixel_weights

# Pixels of each class in GTA5, in the order of the 19 classes.
GTA5_PIXELS = torch.tensor(
    [
        *(16139327127, 4158369631, 8495419275, 927064742, 318109335, 532432540, 67453231, 40526481, 3818867486),
        *(1081467674, 6800402117, 182228033, 15360044, 1265024472, 567736474, 184854135, 32542442, 15832619, 2721193),
    ],
    dtype=torch.float64,
)
GTA5_SHARES = GTA5_PIXELS / GTA5_PIXELS.sum()


class TestClassWeights:
    def test_enets_of_gta5(self):
        expected = [3.09, 9.33, 5.24, 25.03, 37.36, 31.82, 46.99, 48.33, 9.97, 23.11]
        expected += [6.29, 42.02, 49.65, 21.19, 31.06, 41.92, 48.74, 49.63, 50.35]
        assert enet_weights(GTA5_SHARES).tolist() == pytest.approx(expected, abs=0.006)

    def test_enets_range(self):
        one, none = enet_weights(torch.tensor([1.0, 0.0])).tolist()
        assert (one, none) == pytest.approx((1 / math.log(2.02), 1 / math.log(1.02)))  # 1.42 and 50.5

    def test_median_frequency_of_gta5s_shares(self):
        weights = median_frequency_weights(GTA5_SHARES, 1000.0)
        assert (weights.min().item(), weights.max().item()) == pytest.approx((0.0330, 195.7), rel=1e-2)
        assert weights[9 + 6].item() != 1
        assert weights.median().item() == 1

    def test_a_class_that_is_absent_gets_the_cap_and_leaves_the_median_alone(self):
        weights = median_frequency_weights(torch.tensor([0.4, 0.2, 0.1, 0.0, 1e-9]), 10.0)
        assert weights.tolist() == pytest.approx([0.15 / 0.4, 0.15 / 0.2, 0.15 / 0.1, 10, 10])  # median of four

    @pytest.mark.parametrize("weigh", [enet_weights, lambda f: median_frequency_weights(f, 10.0)])
    def test_equal_shares_weigh_alike_and_the_order_does_not_matter(self, weigh):
        assert len(set(weigh(torch.full((19,), 1 / 19)).tolist())) == 1
        shares, order = GTA5_SHARES.float(), torch.randperm(19)
        assert torch.equal(weigh(shares)[order], weigh(shares[order]))

    def test_a_pixel_counts_by_its_class(self):
        label = torch.tensor([[[0, 2], [255, 1]]], dtype=torch.uint8)
        weight = torch.tensor([0.5, 1.0, 4.0])
        assert pixel_weights(label, weight).tolist() == [[[0.5, 4.0], [0.0, 1.0]]]
        assert pixel_weights(label, None).tolist() == [[[True, True], [False, True]]]
