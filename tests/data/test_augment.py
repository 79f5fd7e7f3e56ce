"""Augmentation against torchvision.transforms on the same parameters, image by image, and what must hold anyway."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from uic_core.data import augment as A
from uic_core.run.randomness import uniforms

CLOSE = {"atol": 2e-5, "rtol": 0}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and deviation of red, green, blue


def batch(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """uint8 images with smooth colours, some noise, and exact greys, blacks and ties between channels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 4, 4), generator=generator)
    images = torch.nn.functional.interpolate(coarse, side, mode="bilinear") * 220
    images += 35 * torch.rand(images.shape, generator=generator)
    images[:, :, :4, :4] = 128
    images[:, :, :4, 4:8] = 0
    images[:, 1:, 4:8, :4] = images[:, 1:2, 4:8, :4]
    images[:, :2, 4:8, 4:8] = 255
    return images.to(torch.uint8)


def floats(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return batch(count, side, seed).float() / 255


# ---- the crop's box -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"scale": (0.1, 0.5), "ratio": (1.0, 1.0)}])
def test_crop_box_equals_torchvision_fed_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch, settings: dict):
    """torchvision's get_params draws from a patched generator that hands it our uniform numbers."""
    pairs: Iterator[float] = iter(())
    place: Iterator[float] = iter(())
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda tensor, low, high: tensor.fill_(low + (high - low) * next(pairs))
    )
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor([low + int(next(place) * (high - low))]))
    transform = RandomResizedCrop(224, **settings)
    rng = np.random.default_rng(1)
    off = 0
    for width, height in rng.integers(20, 600, (1500, 2)).tolist():
        u = rng.random(A.CROP_UNIFORMS)
        pairs, place = iter(u[:-2].tolist()), iter(u[:-3:-1].tolist())  # torchvision places y first
        scale, ratio = [float(x) for x in transform.scale], [float(x) for x in transform.ratio]
        top, left, h, w = transform.get_params(torch.empty(3, height, width), scale, ratio)
        got = A.crop_box(width, height, u, **settings)
        difference = np.abs(np.subtract(got, (left, top, left + w, top + h)))
        assert difference.max() <= 1  # torchvision draws in single precision
        off += bool(difference.any())
    assert off <= 3


def test_crop_box_has_torchvisions_distribution():
    width, height, count = 500, 375, 3000
    boxes = np.array([A.crop_box(width, height, u) for u in uniforms(5, 0, np.arange(count), A.CROP_UNIFORMS)])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    )  # top, left, height, width
    left, top, right, bottom = boxes.T
    for ours, reference in [
        ((right - left) * (bottom - top), theirs[:, 2] * theirs[:, 3]),
        ((right - left) / (bottom - top), theirs[:, 3] / theirs[:, 2]),
        (left, theirs[:, 1]),
        (top, theirs[:, 0]),
    ]:
        assert stats.ks_2samp(ours, reference).pvalue > 1e-3


@pytest.mark.parametrize(("width", "height"), [(500, 375), (1, 1), (3, 2), (1000, 10), (10, 1000)])
def test_crop_box_lies_inside_the_image(width: int, height: int):
    for u in np.concatenate([uniforms(0, 0, np.arange(300), A.CROP_UNIFORMS), np.full((1, 22), 1 - 2**-53)]):
        left, top, right, bottom = A.crop_box(width, height, u)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(1000, 10, (493, 0, 506, 10)), (10, 1000, (0, 493, 10, 506))],
)
def test_crop_box_falls_back_to_the_clipped_centre(width: int, height: int, box: tuple[int, ...]):
    assert A.crop_box(width, height, np.full(A.CROP_UNIFORMS, 0.999)) == box


# ---- single operations ----------------------------------------------------------------------------------------------


def test_normalize_equals_torchvision():
    images = batch(4)
    torch.testing.assert_close(A.normalize(images), tv.normalize(images.float() / 255, *IMAGENET), **CLOSE)


def test_flip_mirrors_the_chosen_ones():
    images, chosen = batch(4), np.array([True, False, True, False])
    got = A.flip(images, chosen)
    for one, before, mirrored in zip(got, images, chosen, strict=True):
        assert torch.equal(one, tv.hflip(before) if mirrored else before)


OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def test_jitter_equals_torchvision_in_every_order():
    orders = np.array(list(itertools.permutations(range(4))))
    images = floats(len(orders))
    rng = np.random.default_rng(2)
    factors = np.concatenate([rng.uniform(0.2, 1.8, (24, 3)), rng.uniform(-0.2, 0.2, (24, 1))], 1)
    chosen = rng.random(24) < 0.8
    got = A.jitter(images, factors, orders, chosen)
    for i, want in enumerate(images):
        for operation in orders[i] if chosen[i] else ():
            want = OPERATIONS[operation](want, float(factors[i, operation]))
        torch.testing.assert_close(got[i], want, **CLOSE)
    assert torch.equal(got[~chosen], images[~chosen])


@pytest.mark.parametrize("operation", range(4))
def test_each_colour_operation_alone_equals_torchvision(operation: int):
    images = floats(12, seed=operation)
    values = np.linspace(-0.5, 0.5, 12) if operation == 3 else np.linspace(0, 2, 12)
    factors = np.tile([1.0, 1.0, 1.0, 0.0], (12, 1))
    factors[:, operation] = values
    got = A.jitter(images, factors, np.tile(np.arange(4), (12, 1)), np.full(12, True))
    for one, image, value in zip(got, images, values, strict=True):
        torch.testing.assert_close(one, OPERATIONS[operation](image, float(value)), **CLOSE)


def test_hue_turns_like_a_circle():
    images = floats(6)
    third = torch.full((6,), 1 / 3)
    torch.testing.assert_close(A.shift_hue(images, third), images.roll(1, 1), **CLOSE)
    torch.testing.assert_close(A.shift_hue(A.shift_hue(images, third * 0.4), -third * 0.4), images, **CLOSE)
    torch.testing.assert_close(A.shift_hue(images, third * 3), images, **CLOSE)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(A.shift_hue(grey, third), grey, **CLOSE)


def test_greyscale_equals_torchvision_and_leaves_the_others():
    images, chosen = floats(4), np.array([True, False, False, True])
    got = A.greyscale(images, chosen)
    torch.testing.assert_close(got[chosen], tv.rgb_to_grayscale(images[chosen], 3), **CLOSE)
    assert torch.equal(got[~chosen], images[~chosen])


def test_blur_equals_torchvision_with_a_sigma_of_its_own_for_every_image():
    for side in (32, 96):
        images, sigma = floats(5, side), np.array([0.1, 0.4, 0.9, 1.5, 2.0])
        got = A.gaussian_blur(images, sigma)
        size = A.kernel_size(side)
        for one, image, value in zip(got, images, sigma, strict=True):
            torch.testing.assert_close(one, tv.gaussian_blur(image, [size, size], [value, value]), **CLOSE)


def test_the_kernel_is_odd_and_23_at_224():
    assert A.kernel_size(224) == 23
    assert A.kernel_size(64) == 7
    for side in range(8, 300):
        size = A.kernel_size(side)
        assert size % 2 == 1
        assert size // 2 < side  # reflection needs that
        assert abs(size - 23 * side / 224) <= 1 or size == 3


# ---- the whole ------------------------------------------------------------------------------------------------------


def reference(image: Tensor, u: np.ndarray) -> Tensor:
    """One image through torchvision, parameters read from the documented columns."""
    if u[0] < 0.5:
        image = tv.hflip(image)
    pixels = image.float() / 255
    if u[1] < 0.8:
        factors = [0.2 + 1.6 * u[2], 0.2 + 1.6 * u[3], 0.2 + 1.6 * u[4], -0.2 + 0.4 * u[5]]
        for operation in list(itertools.permutations(range(4)))[math.floor(24 * u[6])]:
            pixels = OPERATIONS[operation](pixels, float(factors[operation]))
    if u[7] < 0.2:
        pixels = tv.rgb_to_grayscale(pixels, 3)
    if u[8] < 0.5:
        pixels = tv.gaussian_blur(pixels, [A.kernel_size(image.shape[-1])] * 2, [0.1 + 1.9 * u[9]] * 2)
    return tv.normalize(pixels, *IMAGENET)


def test_strong_equals_torchvision_step_by_step():
    images, u = batch(64), uniforms(1, 2, np.arange(64), A.UNIFORMS)
    got = A.augment(images, u, "strong")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.stack([reference(*pair) for pair in zip(images, u, strict=True)]), **CLOSE)


def test_selflabel_equals_torchvision_step_by_step():
    """Grey first, then always jitter (.4, .4, .4, .4), flip last: the order of its published code."""
    images, u = batch(64), uniforms(1, 2, np.arange(64), A.UNIFORMS)
    expected = []
    for image, numbers in zip(images, u, strict=True):
        pixels = tv.rgb_to_grayscale(image.float() / 255, 3) if numbers[7] < 0.2 else image.float() / 255
        factors = [*(0.6 + 0.8 * numbers[2:5]), -0.4 + 0.8 * numbers[5]]
        for operation in list(itertools.permutations(range(4)))[math.floor(24 * numbers[6])]:
            pixels = OPERATIONS[operation](pixels, float(factors[operation]))
        expected.append(tv.normalize(tv.hflip(pixels) if numbers[0] < 0.5 else pixels, *IMAGENET))
    torch.testing.assert_close(A.augment(images, u, "selflabel"), torch.stack(expected), **CLOSE)


def test_standard_only_flips_and_normalises():
    images, u = batch(16), uniforms(1, 2, np.arange(16), A.UNIFORMS)
    want = torch.stack([tv.hflip(one) if coin < 0.5 else one for one, coin in zip(images, u[:, 0], strict=True)])
    assert torch.equal(A.augment(images, u, "standard"), A.normalize(want))


@pytest.mark.parametrize("kind", ["standard", "strong", "selflabel"])
def test_an_image_does_not_depend_on_its_batch(kind: A.Augmentation):
    images, u = batch(12), uniforms(3, 0, np.arange(12), A.UNIFORMS)
    whole = A.augment(images, u, kind)
    for i in range(12):
        torch.testing.assert_close(A.augment(images[i : i + 1], u[i : i + 1], kind)[0], whole[i], **CLOSE)


def test_augment_touches_neither_its_input_nor_any_generator():
    images, u = batch(8), uniforms(0, 0, np.arange(8), A.UNIFORMS)
    before, state, numpy_state = images.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.autocast("cpu", torch.bfloat16):
        inside = A.augment(images, u, "strong")
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(inside, A.augment(images, u, "strong"))  # autocast of the caller does not reach in


@pytest.mark.parametrize("u", [np.zeros((1, A.UNIFORMS)), np.full((1, A.UNIFORMS), 1 - 2**-53)])
def test_extreme_numbers_are_fine(u: np.ndarray):
    assert torch.isfinite(A.augment(batch(1), u, "strong")).all()


def test_misuse_is_ours():
    with pytest.raises(AssertionError, match="uint8"):
        A.augment(floats(1), np.zeros((1, A.UNIFORMS)), "standard")
    with pytest.raises(AssertionError, match="uniforms of shape"):
        A.augment(batch(2), np.zeros((1, A.UNIFORMS)), "standard")


@pytest.mark.gpu
def test_the_gpu_gives_the_cpus_numbers():
    images, u = batch(64, 96), uniforms(1, 2, np.arange(64), A.UNIFORMS)
    got = A.augment(images.cuda(), u, "strong")
    torch.testing.assert_close(got.cpu(), A.augment(images, u, "strong"), atol=5e-3, rtol=0)  # TF32 in the blur
    assert torch.equal(got, A.augment(images.cuda(), u, "strong"))
