"""What refines the segmentation loss, on cases that can be worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from da.losses import upsampled_cross_entropy
from da.supervised import (
    OhemConfig,
    class_presence,
    dice_loss,
    enet_weights,
    hard_pixels,
    lovasz_softmax,
    median_frequency_weights,
    pixel_loss,
    pixel_weights,
    presence_loss,
)

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


def case(classes: int = 5, low: tuple[int, int] = (5, 7), high: tuple[int, int] = (20, 28)):
    """Logits and labels of two images; a fifth of the pixels is ignored, and most of the first image."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, classes, *low, generator=generator)
    label = torch.randint(0, classes, (2, *high), generator=generator, dtype=torch.uint8)
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    label[0, 5:] = 255
    return logits.requires_grad_(), label


def probability_of_truth(logits, label):
    """(B, H, W), 2 where ignored."""
    full = F.interpolate(logits, label.shape[1:], mode="bilinear").softmax(1)
    p = full.gather(1, label.long().masked_fill(label == 255, 0)[:, None])[:, 0]
    return p.masked_fill(label == 255, 2)


class TestOhem:
    def test_a_threshold_that_all_pass_is_plain_cross_entropy(self):
        logits, label = case()
        for threshold in (1.0, 1.01):
            ohem = OhemConfig.model_construct(threshold=threshold, min_kept=1)
            assert torch.equal(hard_pixels(logits, label, False, ohem), label)
            loss, plain = pixel_loss(logits, label, False, None, ohem), upsampled_cross_entropy(logits, label)
            torch.testing.assert_close(loss, plain)
            torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, plain)))

    def test_threshold_zero_keeps_exactly_the_hardest_of_each_image(self):
        logits, label = case()
        kept = hard_pixels(logits, label, False, OhemConfig(threshold=0.0, min_kept=30)) != 255
        assert kept.sum((1, 2)).tolist() == [30, 30]
        for p, mask in zip(probability_of_truth(logits, label), kept):
            assert p[mask].max() < p[~mask].min()

    def test_between_them_all_below_the_threshold_are_kept(self):
        logits, label = case()
        hard = hard_pixels(logits, label, False, OhemConfig(threshold=0.7, min_kept=1))
        expected = probability_of_truth(logits, label) <= 0.7
        assert torch.equal(hard != 255, expected)
        assert torch.equal(hard[expected], label[expected])

    def test_ignored_pixels_are_never_kept_and_fewer_than_min_kept_are_all(self):
        logits, label = case()
        before = label.clone()
        ohem = OhemConfig(threshold=0.0, min_kept=200)  # the first image has fewer labelled ones
        hard = hard_pixels(logits, label, False, ohem)
        assert torch.equal(hard[0], label[0])
        assert (hard[1] != 255).sum() == 200
        assert torch.equal(label, before)
        assert torch.equal(hard_pixels(logits, label, False, OhemConfig()), label)  # 100,000 of 1,120 pixels

    def test_nothing_labelled_gives_zero_and_zero_gradient(self):
        logits, label = case()
        loss = pixel_loss(logits, torch.full_like(label, 255), False, torch.ones(5), OhemConfig(min_kept=3))
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any()

    @pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 2.0, 3.0, 4.0])])
    def test_an_images_hard_pixels_stand_for_all_of_its_own(self, weight):
        """And so micro-batches give what the batch gives."""
        logits, label = case()
        ohem = OhemConfig(threshold=0.4, min_kept=20)
        counts = pixel_weights(label, weight).sum((1, 2)).float()
        full = F.interpolate(logits, label.shape[1:], mode="bilinear").split(1)
        hard = hard_pixels(logits, label, False, ohem).long().split(1)
        means = [F.cross_entropy(z, y, weight, ignore_index=255) for z, y in zip(full, hard)]
        expected = (counts * torch.stack(means)).sum() / counts.sum()
        torch.testing.assert_close(pixel_loss(logits, label, False, weight, ohem), expected)

    def test_the_deterministic_form_keeps_the_same(self):
        logits, label = case()
        ohem = OhemConfig(threshold=0.1, min_kept=50)
        plain = hard_pixels(logits, label, False, ohem)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.equal(hard_pixels(logits, label, False, ohem), plain)
        finally:
            torch.use_deterministic_algorithms(False)


def one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    return F.one_hot(label.long() % 255, classes).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("overlap", [lovasz_softmax, dice_loss])
class TestOverlap:
    def test_a_perfect_prediction_is_zero_and_a_wrong_one_is_one(self, overlap):
        label = torch.randint(0, 4, (2, 6, 7), generator=torch.Generator().manual_seed(0))
        assert overlap(one_hot(label, 5), label).item() == pytest.approx(0, abs=1e-6)
        assert overlap(one_hot(label + 1, 5), label).item() == pytest.approx(1)
        alone = torch.full((1, 6, 7), 2)
        assert overlap(one_hot(torch.zeros_like(alone), 5), alone).item() == pytest.approx(1)

    def test_of_hard_predictions_it_is_that_of_the_confusion(self, overlap):
        """1 - IoU, or 1 - 2 IoU / (1 + IoU), of the classes that an image shows, ignored pixels left out."""
        _, label = case()
        guess = torch.randint(0, 5, label.shape, generator=torch.Generator().manual_seed(1))
        expected = []
        for truth, found in zip(label, guess):
            valid = truth != 255
            for c in truth[valid].unique():
                hit = (valid & (truth == c) & (found == c)).sum()
                iou = hit / (valid & ((truth == c) | (found == c))).sum()
                score = iou if overlap is lovasz_softmax else 2 * iou / (1 + iou)
                expected.append((1 - score) / len(truth[valid].unique()))
        mean = sum(expected) / len(label)
        assert overlap(one_hot(guess, 5), label).item() == pytest.approx(mean.item(), rel=1e-5)

    def test_the_order_of_pixels_and_what_is_ignored_have_no_effect(self, overlap):
        logits, label = case(low=(20, 28))
        loss = overlap(logits.softmax(1), label)
        order = torch.randperm(20 * 28, generator=torch.Generator().manual_seed(2))
        shuffled = logits.flatten(2)[:, :, order].view_as(logits), label.flatten(1)[:, order].view_as(label)
        torch.testing.assert_close(overlap(shuffled[0].softmax(1), shuffled[1]), loss)
        other = torch.where((label == 255)[:, None], 50 * torch.randn_like(logits), logits)
        torch.testing.assert_close(overlap(other.softmax(1), label), loss)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient.permute(0, 2, 3, 1)[label == 255].any()
        assert gradient.any()

    def test_it_is_the_mean_over_images_of_which_unlabelled_ones_give_nothing(self, overlap):
        logits, label = case(low=(20, 28))
        p = logits.softmax(1)
        each = [overlap(p[i : i + 1], label[i : i + 1]) for i in range(2)]
        torch.testing.assert_close(overlap(p, label), sum(each) / 2)
        label[0] = 255
        torch.testing.assert_close(overlap(p, label), each[1] / 2)
        loss = overlap(p, torch.full_like(label, 255))
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any()

    def test_descent_raises_the_overlap(self, overlap):
        logits, label = case(low=(20, 28))
        losses = []
        for _ in range(20):
            loss = overlap(logits.softmax(1), label)
            losses.append(loss.item())
            (gradient,) = torch.autograd.grad(loss, logits)
            logits = (logits - 300 * gradient).detach().requires_grad_()
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.85 * losses[0]


def test_lovasz_by_hand():
    """One class of two pixels, one of them half sure, and a pixel of another class that is sure."""
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]).T[None, :, None]
    label = torch.tensor([[[0, 0, 1]]])
    # class 0: errors 0.5, 0, 0: 0.5 (1 - 1 / 2). class 1: errors 0.5, 0, 0, the first not of it: 0.5 (1 - 1 / 2).
    assert lovasz_softmax(p, label).item() == pytest.approx(0.25)


class TestPresence:
    label = torch.tensor([[[0, 2], [255, 2]], [[1, 1], [1, 1]]], dtype=torch.uint8)

    def test_it_is_what_the_label_shows_in_any_order(self):
        assert class_presence(self.label, 4).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
        shuffled = self.label.flatten(1)[:, torch.tensor([3, 0, 2, 1])].view_as(self.label)
        assert torch.equal(class_presence(shuffled, 4), class_presence(self.label, 4))

    def test_undecided_logits_give_the_log_of_two(self):
        for weight in (None, torch.tensor([1.0, 5.0, 2.0, 3.0])):
            loss = presence_loss(torch.zeros(2, 4, dtype=torch.bfloat16), self.label, weight)
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(math.log(2))

    def test_classes_count_by_their_weights(self):
        logits = torch.tensor([[3.0, -1.0, 0.5, 2.0]])
        right = [math.log(1 + math.exp(-z)) for z in (3.0, 1.0, 0.5, -2.0)]
        loss = presence_loss(logits, self.label[:1], torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert loss.item() == pytest.approx(sum(w * x for w, x in zip((1, 2, 3, 4), right)) / 10, rel=1e-5)

    def test_an_image_without_labels_has_no_class_and_counts_nothing(self):
        logits = torch.randn(2, 4, requires_grad=True)
        void = torch.full_like(self.label, 255)
        assert not class_presence(void, 4).any()
        assert presence_loss(logits, void).item() == 0
        half = torch.cat([self.label[:1], void[1:]])
        loss = presence_loss(logits, half)
        torch.testing.assert_close(loss, presence_loss(logits[:1], self.label[:1]) / 2)
        loss.backward()
        assert not logits.grad[1].any()
        assert logits.grad[0].all()
