"""Every variant of a step computes what the step computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench import gpu, variants
from bench.methods import trainer_of
from bench.precision import unread
from uic_core.data.augment import UNIFORMS, augment
from uic_core.models.sobel import Sobel


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("side", [63, 64, 65, 66, 67, 224])
def test_space_to_depth_is_the_same_convolution_forward_and_backward(channels: int, side: int) -> None:
    """Padding and kernel fill whole blocks at every remainder of the side; height and width may differ."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 6, 11, 4, 2).double()
    other = variants.SpaceToDepth(channels, 6, 11, 4, 2).double()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, channels, side, side + 1, dtype=torch.float64, requires_grad=True)
    expected = plain(x)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], gradient)
    made = other(x)
    found = torch.autograd.grad(made, [x, *other.parameters()], gradient)
    for one, two in zip((expected, *wanted), (made, *found), strict=True):
        assert one.shape == two.shape
        assert (one - two).abs().max() <= 1e-9


def test_resnets_first_convolution_works_too() -> None:
    plain = nn.Conv2d(3, 4, 7, 2, 3, bias=False).double()
    other = variants.SpaceToDepth(3, 4, 7, 2, 3, bias=False).double()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 65, 64, dtype=torch.float64)
    torch.testing.assert_close(other(x), plain(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["standard", "strong"])
def test_input_in_one_region_is_augment_and_sobel(kind: str) -> None:
    """Within float32's rounding. With 32 images every choice of `strong` is taken and left."""
    rng = np.random.default_rng(0)
    crops = torch.from_numpy(rng.integers(0, 256, (32, 3, 64, 64), np.uint8))
    uniforms = rng.random((32, UNIFORMS))
    drawn, blur = torch.from_numpy(variants.parameters(uniforms)), variants.blur_matrices(64)
    make = getattr(variants, kind)
    expected = augment(crops, uniforms, kind)
    torch.testing.assert_close(make(crops, drawn, blur, False, torch.float32), expected, rtol=0, atol=1e-5)
    found = make(crops, drawn, blur, True, torch.float32)
    torch.testing.assert_close(found, Sobel()(expected), rtol=0, atol=2e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_strong_input_is_one_graph() -> None:
    """Nothing in it asks for a value on the CPU, which would wait for the device and break the region."""
    crops = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    drawn, blur = torch.from_numpy(variants.parameters(np.full((2, UNIFORMS), 0.3))), variants.blur_matrices(64)
    make = torch.compile(variants.strong, fullgraph=True, backend="eager")
    found = make(crops, drawn, blur, True, torch.float32)
    torch.testing.assert_close(found, variants.strong(crops, drawn, blur, True, torch.float32))


def test_a_short_top_layer_has_float32_logits_without_ties() -> None:
    """Of 3,000 logits in bf16 several are the largest; the gradient is float32's within the rounding of bf16."""
    torch.manual_seed(0)
    plain, short = nn.Linear(512, 3000), variants.ShortLinear(512, 3000)
    for weights in (plain.weight, plain.bias):
        nn.init.normal_(weights, 0, 0.01)
    short.load_state_dict(plain.state_dict())
    x = torch.randn(64, 512).relu().bfloat16().float().requires_grad_()
    logits, expected = short(x), plain(x)
    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-3)
    highest = logits.max(1, keepdim=True).values
    assert (logits == highest).sum() == len(x)
    tied = (expected.bfloat16() == expected.bfloat16().max(1, keepdim=True).values).sum()
    assert tied > len(x)
    gradient = torch.randn_like(logits)
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], gradient)
    found = torch.autograd.grad(logits, [x, *short.parameters()], gradient)
    for one, two in zip(wanted, found, strict=True):
        assert two.dtype is torch.float32
        assert (one - two).norm() < 0.01 * one.norm()


def test_weights_keep_their_names_and_shapes() -> None:
    recipe = gpu.recipe_of("alexnet", **gpu.TINY)
    names = [
        {
            name: value.shape
            for name, value in trainer_of(recipe, unread(8, 8), 0, *changes).network.state_dict().items()
        }
        for changes in ((), (variants.space_to_depth, variants.short_top, variants.fused_input))
    ]
    assert names[0] == names[1]
