"""SelfLabel's moments, heads and loss, with the numbers of its published code."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from tests import recipes
from uic_core.methods import selflabel
from uic_core.methods.method import Inference

NONE = cast(Inference, None)
STEPS = 5005  # 1,281,167 images in batches of 256


def recipe(**changes: Any) -> selflabel.SelfLabel:
    imagenet = {"epochs": 400, "batch_size": 256, "optimisations": 100, "lr": 0.08, "lr_steps": [150, 300, 350]}
    made: selflabel.SelfLabel = recipes.recipe(**{"method": "selflabel"} | imagenet | changes)
    return made


def test_the_moments_of_imagenet_are_the_published_ones():
    """Of 100 moments five are in the first epoch and half before epoch 100; the last comes after the end."""
    made = recipe()
    assert selflabel.times(made)[:8] == pytest.approx([0, 0.04, 0.16, 0.37, 0.65, 1.02, 1.47, 2.0], abs=0.006)
    steps = [selflabel.moments(made, epoch, STEPS) for epoch in range(400)]
    assert steps[0] == [0, 205, 820, 1844, 3277]
    assert steps[1] == [115, 2368]  # 401.01 · (5/99)² · 5005 = 5119.5, and with (6/99)² 7372.1
    assert sum(len(each) for each in steps[:10]) == 16
    assert sum(len(each) for each in steps[:100]) == 50
    assert sum(len(each) for each in steps) == selflabel.passes(made).forward == 99
    assert selflabel.passes(made).training == 400


def test_the_moments_of_cifar_are_about_one_an_epoch_and_take_the_heads_in_turn():
    made = recipe(moments="linear", optimisations=400, heads=10, heads_at_once="one")
    steps = [selflabel.moments(made, epoch, 391) for epoch in range(400)]
    assert steps[:3] == [[0], [2], [4]]  # a moment comes 1.005 epochs after the one before
    assert {len(each) for each in steps} == {0, 1}
    assert sum(len(each) for each in steps) == selflabel.passes(made).forward == 398
    assert [list(selflabel.due(made, epoch)) for epoch in (0, 9, 10, 23)] == [[0], [9], [0], [3]]
    assert list(selflabel.due(recipe(heads=10), 23)) == list(range(10))


def test_moments_before_the_same_step_are_one_and_none_is_lost():
    made = recipe(epochs=3, optimisations=50)
    steps = [selflabel.moments(made, epoch, 4) for epoch in range(3)]
    assert steps[0] == [0, 1, 2, 3]
    assert steps == [sorted(set(each)) for each in steps]
    assert [selflabel.moments(recipe(optimisations=0), 0, 4), selflabel.moments(recipe(optimisations=1), 0, 4)] == [
        [],
        [0],
    ]


def test_the_learning_rate_is_that_of_the_published_code():
    made = recipe()
    rates = [made.learning_rate(epoch) for epoch in (0, 149, 150, 299, 300, 349, 350, 399)]
    assert rates == pytest.approx([0.08, 0.08, 0.008, 0.008, 0.0008, 0.0008, 0.00008, 0.00008])


@pytest.mark.parametrize("heads", [1, 3])
def test_first_labels_are_balanced_and_each_heads_own(heads: int):
    made = recipe(heads=heads, classes=7)
    found = selflabel.first_labels(made, np.zeros(60, np.int32), NONE)
    assert found.shape == ((60,) if heads == 1 else (60, heads))
    assert found.dtype == np.int32
    columns = found.reshape(60, heads).T
    assert {tuple(np.bincount(column, minlength=7)) for column in columns} == {(9, 9, 9, 9, 8, 8, 8)}
    assert len({column.tobytes() for column in columns}) == heads
    assert (columns[0] != np.arange(60) % 7).any()


def test_the_loss_is_the_mean_over_heads_of_each_ones_own():
    made, rng = recipe(heads=3, classes=5), np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(4, 15))).float()
    targets = rng.integers(0, 5, (4, 3))
    parts = [-logits[:, 5 * head : 5 * head + 5].log_softmax(1)[range(4), targets[:, head]].mean() for head in range(3)]
    found = selflabel.loss(made, logits, torch.from_numpy(targets).int())
    assert float(found) == pytest.approx(float(sum(parts)) / 3, rel=1e-6)
    one = selflabel.loss(recipe(), logits[:, :5], torch.from_numpy(targets[:, 0]).int())
    assert float(one) == pytest.approx(float(parts[0]), rel=1e-6)
    assert made.outputs == 15
