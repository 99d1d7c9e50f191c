import math

import pytest
import torch
import torch.nn.functional as F

from da import kernels
from da.labels import IGNORE
from da.losses import (
    SOURCE_DOMAIN,
    TARGET_DOMAIN,
    confident_labels,
    cross_entropy,
    domain_accuracy,
    domain_loss,
    entropy,
    fourier_swap,
    missing_classes,
    real_loss,
    robust_entropy,
    score_distance,
    self_information,
    two_way_domain_accuracy,
    two_way_domain_loss,
    upsampled_cross_entropy,
)


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 1, 0, 0] = math.log(5.0)  # class 1 has probability 5 / 8 there, every class 1 / 4 elsewhere
    label = torch.tensor([[[1, 255], [3, 255]]], dtype=torch.uint8)
    expected = (math.log(8 / 5) + math.log(4)) / 2
    assert cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_uniform_logits_give_the_log_of_the_classes(batch, dtype):
    label = torch.arange(batch * 6).reshape(batch, 2, 3).to(dtype)
    loss = cross_entropy(torch.zeros(batch, 19, 2, 3), label)
    assert loss.item() == pytest.approx(math.log(19), rel=1e-6)


def test_all_ignored_crop_gives_exactly_zero_and_zero_gradient():
    logits = torch.randn(2, 19, 4, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 4, 5), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_pixels_get_no_gradient_and_a_batch_is_weighted_by_pixels():
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    label = torch.tensor([[[0, 1], [2, 0]], [[1, 255], [255, 255]]])
    loss = cross_entropy(logits, label)
    loss.backward()
    assert torch.count_nonzero(logits.grad[1, :, 0, 1]) == 0
    first, second = cross_entropy(logits[:1], label[:1]), cross_entropy(logits[1:], label[1:])
    torch.testing.assert_close(loss, (4 * first + second) / 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(dtype):
    logits = torch.randn(1, 19, 64, 64).to(dtype)
    label = torch.randint(0, 19, (1, 64, 64), dtype=torch.uint8)
    loss = cross_entropy(logits, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), label))


def test_inputs_are_left_unchanged():
    logits, label = torch.randn(1, 19, 3, 3), torch.tensor([[[0, 255, 1]] * 3], dtype=torch.uint8)
    copies = logits.clone(), label.clone()
    cross_entropy(logits, label)
    domain_loss(logits, TARGET_DOMAIN, "vanilla")
    domain_loss(logits, TARGET_DOMAIN, "ls")
    domain_accuracy(logits, TARGET_DOMAIN, "ls")
    assert torch.equal(logits, copies[0])
    assert torch.equal(label, copies[1])


@pytest.mark.parametrize("shape", [(1, 8, 4), (2, 4, 4), (1, 1, 4, 4)])
def test_a_label_of_another_size_is_an_error(shape):
    with pytest.raises(ValueError, match="does not match"):
        cross_entropy(torch.zeros(1, 19, 4, 4), torch.zeros(shape, dtype=torch.uint8))


def upsampling_case(classes=19, low=(9, 13), high=(40, 61), dtype=torch.float32):
    """Logits and a label of which a tenth is ignored, and the first 16 rows of the first image."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, classes, *low, generator=generator, dtype=dtype)
    label = torch.randint(0, classes, (2, *high), generator=generator, dtype=torch.uint8)
    label[torch.rand(label.shape, generator=generator) < 0.1] = 255
    label[0, :16] = 255
    return logits.requires_grad_(), label


def plain_upsampled(logits, label, align_corners, weight=None):
    full = F.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(full, label.long(), weight, ignore_index=255)


@pytest.mark.parametrize("strip_rows", [1, 7, 8, 1000])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_upsampled_cross_entropy_equals_the_plain_way(monkeypatch, strip_rows, align_corners, weighted):
    monkeypatch.setattr(kernels, "CPU_STRIP_BYTES", strip_rows * 2 * 19 * 61 * 4)
    logits, label = upsampling_case()
    weight = torch.linspace(0.1, 3, 19) if weighted else None
    loss = upsampled_cross_entropy(logits, label, align_corners, weight)
    expected = plain_upsampled(logits.double(), label, align_corners, None if weight is None else weight.double())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    (wanted,) = torch.autograd.grad(3 * expected, logits)
    assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize(("low", "high"), [((5, 6), (5, 6)), ((1, 1), (7, 9)), ((33, 65), (16, 32))])
@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampled_cross_entropy_at_any_ratio(low, high, align_corners):
    logits, label = upsampling_case(5, low, high)
    label[1, -1, -1] = 2  # at least one labelled pixel
    loss = upsampled_cross_entropy(logits, label, align_corners)
    assert loss.item() == pytest.approx(plain_upsampled(logits, label, align_corners).item(), rel=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_upsampled_cross_entropy_gradcheck(monkeypatch, align_corners, weighted):
    monkeypatch.setattr(kernels, "CPU_STRIP_BYTES", 3 * 2 * 4 * 11 * 8)  # strips of three rows, the last shorter
    logits, label = upsampling_case(4, (3, 4), (10, 11), torch.float64)
    label[0, 5] = 1
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, label, align_corners, weight), logits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_upsampled_cross_entropy_without_a_labelled_pixel_is_zero(dtype):
    logits, label = upsampling_case()
    ignored = torch.full_like(label, 255, dtype=dtype)
    loss = upsampled_cross_entropy(logits, ignored)
    assert (ignored == 255).all()  # the caller's label is left as it is
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_upsampled_cross_entropy_of_far_apart_logits_is_finite():
    logits = torch.tensor([-300.0, 300.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone().requires_grad_()
    loss = upsampled_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == pytest.approx(600)
    assert logits.grad[0, :2].sum((1, 2)).tolist() == pytest.approx([-1, 1])


def test_upsampled_cross_entropy_is_exact_under_autocast_and_low_matmul_precision():
    logits, label = upsampling_case()
    expected = upsampled_cross_entropy(logits, label)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(upsampled_cross_entropy(logits, label), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    low = logits.detach().bfloat16().requires_grad_()
    upsampled_cross_entropy(low, label).backward()
    assert low.grad.dtype == torch.bfloat16


def test_upsampled_cross_entropy_refuses_what_does_not_fit():
    logits, label = upsampling_case()
    with pytest.raises(ValueError, match="does not match"):
        upsampled_cross_entropy(logits, label[:1])
    with pytest.raises(ValueError, match="19 classes"):
        upsampled_cross_entropy(logits, label, weight=torch.ones(5))


@pytest.mark.parametrize(
    ("kind", "value", "domain", "expected"),
    [
        ("vanilla", 0.0, SOURCE_DOMAIN, math.log(2)),
        ("vanilla", 0.0, TARGET_DOMAIN, math.log(2)),
        ("vanilla", 2.0, SOURCE_DOMAIN, math.log(1 + math.exp(2))),
        ("vanilla", 2.0, TARGET_DOMAIN, math.log(1 + math.exp(-2))),
        ("ls", 0.5, SOURCE_DOMAIN, 0.25),
        ("ls", 1.0, TARGET_DOMAIN, 0.0),
        ("ls", 3.0, SOURCE_DOMAIN, 9.0),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_domain_loss_values(kind, value, domain, expected, batch):
    loss = domain_loss(torch.full((batch, 1, 4, 8), value, dtype=torch.bfloat16), domain, kind)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["vanilla", "ls"])
def test_adversarial_loss_moves_a_target_verdict_towards_source(kind):
    out = torch.full((1, 1, 2, 4), 20.0, requires_grad=True)  # D is sure: target
    loss = domain_loss(out, SOURCE_DOMAIN, kind)
    loss.backward()
    assert loss > 10
    assert (out.grad > 0).all()  # descent lowers D's output, towards the source's side
    assert domain_loss(out, TARGET_DOMAIN, kind) < domain_loss(out, SOURCE_DOMAIN, kind)


def test_domain_accuracy():
    out = torch.tensor([-1.0, 0.2, 0.7, 3.0], requires_grad=True)
    assert domain_accuracy(out, TARGET_DOMAIN, "vanilla").item() == 0.75
    assert domain_accuracy(out, SOURCE_DOMAIN, "vanilla").item() == 0.25
    assert domain_accuracy(out, TARGET_DOMAIN, "ls").item() == 0.5
    accuracy = domain_accuracy(out, SOURCE_DOMAIN, "ls")
    assert accuracy.item() == 0.5
    assert accuracy.shape == ()
    assert not accuracy.requires_grad


def test_real_loss_values():
    scores = torch.full((2, 1, 3, 3), 0.25, dtype=torch.bfloat16)
    assert real_loss(scores, True).item() == pytest.approx(0.75**2)
    assert real_loss(scores, False).item() == pytest.approx(0.25**2)


def test_two_way_domain_loss_reads_the_domains_own_channel():
    log_p = torch.tensor([0.2, 0.8]).log().view(1, 2, 1, 1).expand(2, 2, 3, 3)
    assert two_way_domain_loss(log_p, SOURCE_DOMAIN).item() == pytest.approx(-math.log(0.2))
    assert two_way_domain_loss(log_p, TARGET_DOMAIN).item() == pytest.approx(-math.log(0.8))
    assert two_way_domain_accuracy(log_p, SOURCE_DOMAIN) == 0
    assert two_way_domain_accuracy(log_p, TARGET_DOMAIN) == 1


def test_doubtful_pixels_are_ignored():
    logits = torch.tensor([[0.9, 0.6], [0.1, 0.4]]).log().view(1, 2, 1, 2)
    assert confident_labels(logits, 0.0).tolist() == [[[0, 0]]]
    assert confident_labels(logits, 0.7).tolist() == [[[0, IGNORE]]]


def test_score_distance_is_zero_for_equal_shapes_of_scores_and_leaves_the_wanted_alone():
    wanted = torch.randn(2, 5, 8, 8, requires_grad=True)
    scores = (3 * wanted + 1).detach().requires_grad_()
    assert score_distance(scores, wanted).item() == pytest.approx(0, abs=1e-4)
    other = torch.randn(2, 5, 8, 8, requires_grad=True)
    distance = score_distance(other, wanted)
    assert distance.item() == pytest.approx(2, rel=0.3)  # of independent maps of variance 1
    distance.backward()
    assert other.grad is not None
    assert wanted.grad is None


class TestEntropy:
    def test_uniform_is_one_and_certain_is_zero(self):
        uniform, certain = torch.full((2, 19, 3, 4), 1 / 19), torch.eye(19)[None, :, :, None]
        assert entropy(uniform).item() == pytest.approx(1, rel=1e-6)
        assert entropy(certain).item() == 0
        assert self_information(certain).shape == certain.shape
        assert self_information(uniform)[0, 0, 0, 0].item() == pytest.approx(1 / 19, rel=1e-6)

    def test_minimising_it_makes_the_likeliest_class_likelier(self):
        logits = torch.tensor([0.5, 0.2, -0.1]).reshape(1, 3, 1, 1).requires_grad_()
        entropy(logits.softmax(1)).backward()
        assert logits.grad.flatten()[0] < 0 < logits.grad.flatten()[2]

    def test_a_class_of_probability_zero_has_a_gradient(self):
        p = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
        entropy(p).backward()
        assert p.grad.isfinite().all()

    def test_only_classes_below_their_share_count(self):
        """Two images; in the first class 1 is missing, in the second class 0 falls short by 0.1."""
        p = torch.tensor([[1.0, 0.0], [0.15, 0.85]])[:, :, None, None].expand(2, 2, 3, 4)
        shares = torch.tensor([0.5, 0.5])
        assert missing_classes(p, shares, 0.5).item() == pytest.approx((0.25 + 0.1) / 2, rel=1e-5)
        assert missing_classes(p, shares, 0.0).item() == 0


class TestFourierSwap:
    images = torch.rand(2, 2, 3, 24, 33, generator=torch.Generator().manual_seed(0)) * 255

    @pytest.mark.parametrize("window", ["symmetric", "released"])
    def test_an_image_swapped_with_itself_stays_as_it_is(self, window):
        image = self.images[0]
        assert (fourier_swap(image, image, 0.1, window) - image).abs().max() < 1e-3

    def test_no_window_leaves_the_image_alone(self):
        content, style = self.images
        assert fourier_swap(content, style, 0.0) is content

    def test_a_symmetric_window_gives_a_real_picture_with_the_amplitudes_of_the_other(self):
        content, style = self.images
        b = 2  # floor(24 * 0.1)
        swapped = torch.fft.fft2(fourier_swap(content, style, 0.1))
        amplitudes, phases = swapped.abs(), torch.fft.fft2(content)
        inside = torch.zeros(24, 33, dtype=torch.bool)
        for row in range(-b, b + 1):
            for column in range(-b, b + 1):
                inside[row, column] = True
        assert torch.allclose(amplitudes[..., inside], torch.fft.fft2(style).abs()[..., inside], rtol=1e-3)
        assert torch.allclose(amplitudes[..., ~inside], phases.abs()[..., ~inside], rtol=1e-3, atol=1e-2)
        turn = swapped / phases  # real and positive where the phase is the content's
        assert (turn.imag.abs() < 1e-3 * turn.abs() + 1e-4).all()

    def test_the_released_window_lacks_the_highest_positive_frequency(self):
        """And so gives another picture."""
        symmetric, released = (fourier_swap(*self.images, 0.1, window) for window in ("symmetric", "released"))
        assert (symmetric - released).abs().max() > 0.1

    def test_the_mean_colour_comes_from_the_other_image(self):
        swapped = fourier_swap(*self.images, 0.02)  # b = 0: the mean alone
        assert torch.allclose(swapped.mean((2, 3)), self.images[1].mean((2, 3)), rtol=1e-4)


def test_robust_entropy_is_one_of_uniform_and_nearly_zero_of_certain_predictions():
    assert robust_entropy(torch.full((1, 19, 2, 2), 1 / 19), 2.0).item() == pytest.approx(1, rel=1e-5)
    assert robust_entropy(torch.eye(19)[None, :, :, None], 2.0).item() == pytest.approx(1e-16, rel=1e-3)
    half = torch.tensor([0.5, 0.5, 0, 0]).reshape(1, 4, 1, 1)  # e = ln 2 / ln 4
    assert robust_entropy(half, 2.0).item() == pytest.approx(0.5**4, rel=1e-5)
