"""SelfLabel in the loop: labels that change within an epoch, several heads, and what interrupts their making."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.recipes import recipe
from uic_core import checkpoint
from uic_core.data.index import build_folder
from uic_core.errors import INTERRUPTED
from uic_core.methods import METHODS, sinkhorn
from uic_core.methods.method import augmented
from uic_core.pretrain import label_passes, loop
from uic_core.pretrain.__main__ import main
from uic_core.recipe import save
from uic_core.run import scratch
from uic_core.run.parallel import Ranks

OUTPUTS = ("checkpoint.safetensors", "labels.npy", "history.jsonl")
HEADS = {"heads": 2, "optimisations": 4}  # labels before steps 1 and 3 of the first epoch, and step 3 of the second


@pytest.fixture
def train(demo_data: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """train(folder, **changes) trains 48 images in batches of 16 for two epochs -> the folder."""
    index = tmp_path / "index.npz"
    build_folder(demo_data.imagenet, "train", "imagenet").save(index)

    def run(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        save(
            recipe(**{"method": "selflabel", "augmentation": "selflabel", "sobel": False} | changes), folder / "r.yaml"
        )
        main(["--recipe", str(folder / "r.yaml"), "--train-index", str(index), "--out", str(folder)])
        return folder

    return run


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in OUTPUTS]


@pytest.fixture(scope="module")
def undisturbed() -> list[bytes]:
    """What such a run leaves; filled by the first test that trains it."""
    return []


@pytest.mark.parametrize("where", ["pass", "optimisation"])
def test_told_to_end_while_labels_are_made_it_goes_on_with_the_same_bytes(
    train, undisturbed, monkeypatch, capsys, where
):  # fmt: skip
    """In the second moment, within the first epoch: its pass has moved batch norm's statistics by then."""
    undisturbed[:] = undisturbed or outputs(train("undisturbed", **HEADS))
    calls = []

    def tell(*_: object) -> None:
        calls.append(1)
        if len(calls) == (5 if where == "pass" else 1):  # three batches a pass
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        if where == "pass":

            def views(*given: Any) -> torch.Tensor:
                if not torch.is_grad_enabled():
                    tell()
                return augmented(*given)

            patch.setitem(METHODS, "selflabel", replace(METHODS["selflabel"], views=views))
        else:
            steps = loop.Trainer._steps

            def then_tell(trainer: loop.Trainer, *rest: Any) -> None:
                steps(trainer, *rest)
                patch.setattr(Ranks, "add", lambda _, values: tell() or values)  # once an iteration

            patch.setattr(loop.Trainer, "_steps", then_tell)
        with pytest.raises(SystemExit) as stop:
            train("run", **HEADS)
    assert stop.value.code == INTERRUPTED
    assert len(calls) == (5 if where == "pass" else 1), "it ends at the next batch or iteration"
    assert "interrupted: SIGUSR1, saved before epoch 1, step 3" in capsys.readouterr().err
    folder = train("run", **HEADS)
    said = capsys.readouterr().out
    assert "going on from epoch 1, step 3" in said
    assert said.count("labels of head 1/2: ") == 2, "that moment again, and the last"
    assert outputs(folder) == undisturbed


def test_an_epoch_draws_every_image_once_with_the_label_it_has_then(train, monkeypatch):
    """Three moments; the labels that each makes are told apart."""
    steps: list[torch.Tensor] = []
    drawn: list[np.ndarray] = []
    made = iter(range(3))
    take, loss = loop.Trainer._take, METHODS["selflabel"].loss
    parts = {
        "labels": lambda *_: np.full(48, next(made), np.int32),
        "loss": lambda settings, logits, targets: steps.append(targets.clone()) or loss(settings, logits, targets),
    }
    monkeypatch.setitem(METHODS, "selflabel", replace(METHODS["selflabel"], **parts))
    monkeypatch.setattr(
        loop.Trainer, "_take", lambda self, step, *rest: drawn.append(step.positions) or take(self, step, *rest)
    )
    folder = train("run", optimisations=4)
    assert [set(targets.tolist()) for targets in steps] == [{0}, {0}, {1}, {1}, {1}, {2}]
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(48))
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["coverage"] for line in history] == [1.0, 1.0]
    assert [line["empty_classes"] for line in history] == [4, 4]


def test_every_head_learns_and_the_first_ones_labels_are_kept(train, monkeypatch):
    seen: list[np.ndarray] = []
    relabel = loop.Trainer._relabel
    monkeypatch.setattr(
        loop.Trainer, "_relabel", lambda self, found, *rest: seen.append(found) or relabel(self, found, *rest)
    )
    folder = train("run", heads=3, heads_at_once="one", optimisations=4)
    assert [found.shape for found in seen] == [(48, 3)] * 4
    changed = [[bool((one[:, head] != other[:, head]).any()) for head in range(3)] for one, other in pairwise(seen)]
    assert changed == [[True, False, False], [True, False, False], [False, True, False]]  # number epoch mod 3
    assert np.load(folder / "labels.npy").tolist() == seen[-1][:, 0].tolist()
    network, _ = checkpoint.load(folder / "checkpoint.safetensors")
    assert network.top.weight.shape == (15, 4096)
    start = checkpoint.load(train("start", method="random", classes=15) / "checkpoint.safetensors")[0]
    assert ((network.top.weight - start.top.weight).view(3, -1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("arch", ["alexnet_rotnet", "resnet50_mlp"])
def test_a_last_batch_of_one_image_has_labels_too(train, arch):
    """The head's batch norm cannot normalise one image."""
    folder = train("run", arch=arch, images=17, optimisations=1, epochs=1)
    counts = np.bincount(np.load(folder / "labels.npy"), minlength=5)
    assert counts.sum() == 17
    assert counts.max() <= 5, "classes are about equally large"


def test_what_does_not_fit_into_memory_lies_in_files_that_go(train, monkeypatch, tmp_path):
    known = np.load(train("known", optimisations=1, epochs=1) / "labels.npy")
    made = []
    assign = sinkhorn.assign

    def watch(logits: Any, plan: torch.Tensor, *rest: Any) -> sinkhorn.Assigned:
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{tmp_path}/run/" in line]
        made.append((plan.dtype, len(mapped)))
        return assign(logits, plan, *rest)

    monkeypatch.setattr(sinkhorn, "assign", watch)
    monkeypatch.setattr(scratch, "EXACT", 0)
    monkeypatch.setattr(label_passes, "_MEMORY", 0)
    found = np.load(train("run", optimisations=1, epochs=1) / "labels.npy")
    assert made == [(torch.bfloat16, 2)]
    assert (found != known).sum() <= 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_file()) == sorted(
        [*OUTPUTS, "r.yaml", "training.json"]
    )
