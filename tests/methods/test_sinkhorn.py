"""Balanced labels against a plain transcription in float64, and what must hold of any."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uic_core.errors import InputError
from uic_core.methods import sinkhorn
from uic_core.methods.sinkhorn import Assigned, assign

IMAGES, CLASSES = 5000, 100


def transcribed(logits: NDArray[np.floating], sharpness: float, tolerance: float) -> tuple[NDArray[np.intp], int]:
    """Labels and iterations of SelfLabel's rules as they are written, all in float64: P = softmax(logits)^λ."""
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True)) ** sharpness
    images, classes = p.shape
    c, error, iteration = np.full(images, 1 / images), np.inf, 0
    while error > tolerance:
        r = 1 / classes / (c @ p)
        after = 1 / images / (p @ r)
        if iteration % 10 == 0:
            error = np.abs(c / after - 1).sum()
        c, iteration = after, iteration + 1
    return (p * r * c[:, None]).argmax(1), iteration


@functools.cache
def drawn(spread: float, images: int = IMAGES, classes: int = CLASSES) -> NDArray[np.float32]:
    """Logits of clustered features; `spread` is their deviation. Some classes are everybody's, some nobody's."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2 * classes, 64))[rng.integers(2 * classes, size=images)]
    features = (features + 0.5 * rng.normal(size=(images, 64))) / 8
    return (spread * (features @ rng.normal(size=(64, classes)) + rng.normal(size=classes))).astype(np.float32)


def assigned(logits: NDArray[np.float32], sharpness: float, tolerance: float, dtype: torch.dtype) -> Assigned:
    rows = torch.from_numpy(logits)
    plan = torch.empty(rows.shape, dtype=dtype)
    return assign(lambda part: rows[part], plan, len(rows), sharpness, tolerance)


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(("sharpness", "tolerance"), [(10, 0.01), (25, 0.1)])
def test_labels_and_iterations_are_those_of_the_transcription(sharpness: float, tolerance: float, spread: float):
    """At the beginning of a training, and at its end."""
    expected, iterations = transcribed(drawn(spread), sharpness, tolerance)
    found = assigned(drawn(spread), sharpness, tolerance, torch.float32)
    assert found.labels.tolist() == expected.tolist()
    assert found.iterations == iterations
    assert len(set(expected.tolist())) == CLASSES
    rounded = assigned(drawn(spread), sharpness, tolerance, torch.bfloat16)
    assert (rounded.labels.numpy() != expected).mean() < 0.001, "two bytes a number move close calls alone"


@pytest.mark.parametrize(("sharpness", "tolerance"), [(10, 0.01), (25, 0.1)])
def test_the_marginals_are_within_the_tolerance(sharpness: float, tolerance: float):
    """The rows' sums are exact at any r; so of all columns' deviations no more is left than of the error's N terms."""
    found = assigned(drawn(2.0), sharpness, tolerance, torch.float32)
    assert found.error <= tolerance
    shares = torch.softmax(sharpness * torch.from_numpy(drawn(2.0)).double() + found.log_r, 1).sum(0) / IMAGES
    assert float((shares - 1 / CLASSES).abs().sum()) <= tolerance / IMAGES
    assert float((shares - 1 / CLASSES).abs().sum()) > 1e-16, "it ends at the tolerance, not at the fixed point"


def test_what_underflows_in_float32_gets_its_labels():
    """A class of probability e^-10, or less, to the 25th: below e^-104 float32 holds nothing, and the class is gone."""
    logits = drawn(0.5).copy()
    logits[:, 3] -= 8
    plain = torch.softmax(torch.from_numpy(logits), 1) ** 25
    assert not plain[:, 3].any()
    expected, _ = transcribed(logits, 25, 0.1)
    found = assigned(logits, 25, 0.1, torch.float32)
    assert found.labels.tolist() == expected.tolist()
    assert 20 < (expected == 3).sum() < 100


def test_what_underflows_in_float64_gets_its_labels_too():
    """e^-1000 for every image. What is added to a class's logits alone changes no label: r takes it out again."""
    logits = drawn(0.5).copy()
    expected = assigned(logits, 25, 1e-6, torch.float32).labels
    logits[:, 3] -= 40
    found = assigned(logits, 25, 1e-6, torch.float32)
    assert (found.labels != expected).sum() <= 1  # the logits themselves are rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plan_that_r_leaves_far_behind_is_scaled_anew(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    expected = assigned(drawn(2.0), 25, 0.1, torch.float32)
    monkeypatch.setattr(sinkhorn, "_FAR", 0.2)
    found = assigned(drawn(2.0), 25, 0.1, dtype)
    assert (found.labels != expected.labels).sum() <= (0 if dtype == torch.float32 else 5)
    assert found.iterations == expected.iterations


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    expected = assigned(drawn(0.5), 10, 0.01, torch.float32)
    monkeypatch.setattr(sinkhorn, "_CHUNK", {"cpu": 7 * CLASSES})
    found = assigned(drawn(0.5), 10, 0.01, torch.float32)
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.log_r, expected.log_r, rtol=1e-9, atol=1e-9)


def test_labels_go_with_their_images_and_not_with_a_rows_offset():
    rng = np.random.default_rng(1)
    order = rng.permutation(IMAGES)
    expected = assigned(drawn(0.5), 10, 0.01, torch.float32).labels[order]
    shifted = drawn(0.5)[order] + rng.normal(size=(IMAGES, 1)).astype(np.float32)
    assert (assigned(shifted, 10, 0.01, torch.float32).labels != expected).sum() <= 1  # offsets round


def test_it_pauses_and_ends_at_last():
    pauses: list[int] = []
    rows = torch.from_numpy(drawn(2.0))
    found = assign(
        lambda part: rows[part], torch.empty(rows.shape), IMAGES, 25, 1e-30, pause=lambda: pauses.append(1), most=25
    )
    assert found.iterations == 25
    assert found.error > 1e-30
    assert len(pauses) > 25
    assert len(found.labels.unique()) == CLASSES


def test_outputs_that_are_not_finite_are_refused():
    logits = drawn(0.5).copy()
    logits[7, 3] = np.nan
    with pytest.raises(InputError, match="outputs are not finite, the training diverged; lower lr"):
        assigned(logits, 10, 0.01, torch.float32)


@pytest.mark.gpu
def test_the_gpu_gives_the_cpus_labels():
    rows, expected = torch.from_numpy(drawn(2.0)).cuda(), assigned(drawn(2.0), 25, 0.1, torch.float32)
    for place in ("cuda", "cpu"):
        plan = torch.empty(rows.shape, device=place)
        found = assign(lambda part: rows[part], plan, IMAGES, 25, 0.1)
        assert found.labels.tolist() == expected.labels.tolist()
        assert found.iterations == expected.iterations
