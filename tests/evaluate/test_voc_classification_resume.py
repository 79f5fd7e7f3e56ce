"""VOC classification that is told to end goes on later as if nothing was: real signals, real files."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from uic_core import checkpoint, recipe
from uic_core.errors import INTERRUPTED
from uic_core.evaluate import voc_classification
from uic_core.evaluations import VocClassification
from uic_core.methods import parse_run
from uic_core.models import build
from uic_core.run import metrics
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[2]
PROTOCOL: dict[str, Any] = {
    "image_size": 64, "batch_norm": "affine_trained", "iterations": 5, "batch_size": 4, "lr": 0.01,
    "lr_halved_every": 2, "momentum": 0.9, "weight_decay": 1e-4, "clip_gradient": 10.0, "crops": 2, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("saved") / "checkpoint.safetensors"
    made_by = read_yaml(ROOT / "config" / "demo.yaml")["runs"]["random_sobel"] | {"classes": 4}
    torch.manual_seed(0)
    network = build("alexnet", classes=4, image_size=64, sobel=True)
    checkpoint.save(path, network, parse_run(made_by, "test"), {"data": "0"})
    return path


@pytest.fixture
def stage(saved: Path, demo_data: SimpleNamespace, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the stage in a folder, which holds `kept` at the end; what it wrote."""

    def run(folder: str, train: str, kept: Sequence[Path] = (), **changes: Any) -> dict[str, Any]:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        settings = recipe.parse(VocClassification, PROTOCOL | {"train": train} | changes, "test")
        recipe.save(settings, tmp_path / "protocol.yaml")
        out = place / f"voc_classification_{train}.json"
        arguments = {"checkpoint": saved, "protocol": tmp_path / "protocol.yaml", "voc": demo_data.voc07, "out": out}
        voc_classification.main(["--run", "r", *(f"--{name}={path}" for name, path in arguments.items())])
        assert {*place.iterdir()} == {place / f".{out.stem}.finished", out, *kept}  # no state of its own is left
        written: dict[str, Any] = json.loads(out.read_text())
        return written

    return run


def told_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, number: signal.Signals) -> None:
    """Let the process get a signal in a call of a function of the stage."""
    function, calls = getattr(voc_classification, name), []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*arguments)

    monkeypatch.setattr(voc_classification, name, counted)


@pytest.mark.parametrize(
    ("train", "function", "call", "number", "where"),
    [
        ("fc6_8", "loss", 3, signal.SIGUSR1, "saved before iteration 4"),
        ("all", "loss", 1, signal.SIGINT, "saved before iteration 2"),
        ("all", "_augmented", 6, signal.SIGTERM, "saved before the test"),
    ],
)
def test_fault_42_voc_classification_goes_on_after_a_time_limit(
    stage: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], seen: Callable[[object], None], train: str, function: str, call: int,
    number: signal.Signals, where: str,
) -> None:  # fmt: skip
    undisturbed = stage("undisturbed", train)
    with monkeypatch.context() as patched:
        told_at(patched, function, call, number)
        patched.setattr(metrics, "_STARTED", metrics._STARTED - 3600)
        with pytest.raises(SystemExit) as stop:
            stage("interrupted", train)
    err = capsys.readouterr().err
    seen(err)
    assert stop.value.code == INTERRUPTED
    assert err.startswith(f"interrupted: {number.name}, {where} in ")
    assert (tmp_path / "interrupted" / f"voc_classification_{train}.interrupted").exists()
    found = stage("interrupted", train)
    assert found["values"] == undisturbed["values"]
    assert found["provenance"]["wall_seconds"] > 3600, "the interrupted process's time counts"
    assert "going on from iteration " in capsys.readouterr().out


def test_fault_41_a_test_that_is_longer_than_the_limit_is_not_queued_for_ever(
    stage: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], seen: Callable[[object], None],
) -> None:  # fmt: skip
    """The attempt that trained has saved and goes back into the queue; the next, which only tests, does not."""
    undisturbed, asks = stage("undisturbed", "fc6_8"), tmp_path / "asks"
    monkeypatch.setenv("UIC_SAVED", str(asks))
    for call, queued in ((6, True), (1, False)):
        asks.unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            told_at(patched, "_augmented", call, signal.SIGUSR1)
            with pytest.raises(SystemExit) as stop:
                stage("limited", "fc6_8")
        assert stop.value.code == INTERRUPTED
        assert asks.exists() == queued
    err = capsys.readouterr().err.splitlines()[-1]
    seen(err)
    assert err == (
        "interrupted: SIGUSR1 in the test, which begins anew in every attempt; if the job's time limit ended it, give "
        "this rule more runtime in the profile (set-resources), else run the same command again"
    )
    assert stage("limited", "fc6_8")["values"] == undisturbed["values"]


def test_a_state_of_another_protocol_is_not_used_and_stays(
    stage: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    with monkeypatch.context() as patched:
        told_at(patched, "loss", 2, signal.SIGTERM)
        with pytest.raises(SystemExit):
            stage("one", "fc6_8")
    capsys.readouterr()
    theirs = list((tmp_path / "one").glob("*.state.*"))
    assert theirs
    stage("one", "fc6_8", kept=theirs, lr=0.02)
    assert "going on" not in capsys.readouterr().out
