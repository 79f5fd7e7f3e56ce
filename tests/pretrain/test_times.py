"""What a training records of its time: by epoch, in training.json, through interruptions; never in the history."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.recipes import recipe
from uic_core.data.index import build_folder
from uic_core.errors import INTERRUPTED
from uic_core.files import sha256, stamp
from uic_core.methods import METHODS
from uic_core.pretrain import loop
from uic_core.pretrain.__main__ import main
from uic_core.recipe import save
from uic_core.run import trained

Small = Callable[..., Path]


@pytest.fixture
def small(demo_data: SimpleNamespace, tmp_path: Path) -> Small:
    """Run the stage on 48 images: small(folder, *arguments, **changes) -> the folder."""
    build_folder(demo_data.imagenet, "train", "imagenet").save(tmp_path / "index.npz")

    def run(name: str, *arguments: str, **changes: Any) -> Path:
        folder = tmp_path / name
        save(recipe(**changes), folder / "recipe.yaml")
        given = ["--recipe", folder / "recipe.yaml", "--train-index", tmp_path / "index.npz", "--out", folder]
        main([str(each) for each in [*given, *arguments]])
        return folder

    return run


def epochs(folder: Path) -> list[trained.Epoch]:
    made = trained.read(folder)
    assert made is not None
    return made.epochs


@pytest.mark.parametrize(
    ("changes", "inputs"),
    [
        ({}, [48, 48]),
        ({"label_view": "center_crop"}, [48, 96]),  # the first epoch keeps the drawn labels
        ({"method": "deepcluster", "schedule": "constant"}, [96, 96]),
        ({"method": "finetune", "pretrained": "start"}, [96, 48]),
    ],
    ids=["uic", "center_crop", "deepcluster", "finetune"],
)
def test_every_epoch_has_its_images_inputs_and_times(small: Small, changes: dict[str, Any], inputs: list[int]) -> None:
    arguments = []
    if "pretrained" in changes:
        arguments = ["--pretrained", str(small("start", method="random") / "checkpoint.safetensors")]
    started = time.monotonic()
    folder = small("run", *arguments, **changes)
    taken = time.monotonic() - started
    found = epochs(folder)
    assert [epoch.images for epoch in found] == [48, 48]
    assert [epoch.inputs for epoch in found] == inputs
    assert all(epoch.training_seconds > 0 and epoch.label_seconds > 0 for epoch in found)
    assert sum(epoch.training_seconds + epoch.label_seconds for epoch in found) < taken
    made = trained.read(folder)
    assert made is not None
    assert (made.recipe, made.precision) == (recipe(**changes).hash(), "float32")
    assert "seconds" not in (folder / "history.jsonl").read_text()


def test_a_run_that_does_not_train_has_no_epochs(small: Small) -> None:
    folder = small("run", method="random")
    made = trained.read(folder)
    assert made is not None
    assert (made.epochs, made.recipe) == ([], recipe(method="random").hash())


def test_fault_63_a_fine_tuning_records_the_bytes_that_it_started_from(small: Small) -> None:
    start = small("start", method="random") / "checkpoint.safetensors"
    tuned = trained.read(small("run", "--pretrained", str(start), method="finetune", pretrained="start"))
    assert tuned is not None
    assert (tuned.start, tuned.start_stamp) == (sha256(start)[:16], stamp(start))
    fresh = trained.read(small("fresh"))
    assert fresh is not None
    assert (fresh.start, fresh.start_stamp) == ("", [])


def test_time_is_that_of_labels_or_of_steps(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["supervised"]

    def slow_labels(*arguments: Any) -> Any:
        time.sleep(0.5)
        return method.labels(*arguments)

    def slow_loss(*arguments: Any) -> Any:
        time.sleep(0.4)  # in each of three steps
        return method.loss(*arguments)

    changes = {"method": "supervised", "classes": 4}
    plain = epochs(small("plain", **changes))
    monkeypatch.setitem(METHODS, "supervised", replace(method, labels=slow_labels, loss=slow_loss))
    slow = epochs(small("slow", **changes))
    for before, after in zip(plain, slow, strict=True):
        assert before.label_seconds < 0.5 <= after.label_seconds < 1.2
        assert after.training_seconds >= 1.2


def test_an_interrupted_run_goes_on_with_its_times(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end within the second epoch, of six steps: no time is lost, and no image is counted twice."""
    undisturbed = small("undisturbed", batch_size=8)
    take, calls, kept = loop.Trainer._take, [], {}

    def slowly(trainer: loop.Trainer, *arguments: Any) -> Any:
        calls.append(1)
        time.sleep(0.1)
        if len(calls) == 7:  # two steps are left then: the first of them is not the last
            os.kill(os.getpid(), signal.SIGTERM)
        return take(trainer, *arguments)

    def note(trainer: loop.Trainer, *arguments: Any) -> Any:
        found = take(trainer, *arguments)
        kept.setdefault("first", trainer.run_state.position.training_seconds)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_take", slowly)
        with pytest.raises(SystemExit) as stop:
            small("interrupted", batch_size=8)
        assert stop.value.code == INTERRUPTED
    monkeypatch.setattr(loop.Trainer, "_take", note)
    resumed = small("interrupted", batch_size=8)
    assert (resumed / "history.jsonl").read_bytes() == (undisturbed / "history.jsonl").read_bytes()
    first, second = epochs(resumed)
    assert (first.images, first.inputs, second.images, second.inputs) == (48, 48, 48, 48)
    assert first.training_seconds >= 0.6  # all of the first process
    assert second.training_seconds > kept["first"] >= 0.3  # three steps or more of the first process, then the rest


def test_times_are_in_the_file_as_numbers(small: Small) -> None:
    content = json.loads((small("run", epochs=1) / "training.json").read_text())
    (epoch,) = content["epochs"]
    assert set(epoch) == {"images", "inputs", "training_seconds", "label_seconds"}
    assert content["files"].keys() == {"checkpoint.safetensors", "labels.npy", "history.jsonl"}
