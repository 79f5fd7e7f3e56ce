"""Linear probes that end early go on as if nothing was, and two processes find what one finds: real processes.

Most are forks (tests/forked.py); not the undisturbed one, and not those that torchrun ends.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import forked
from tests.states import worked_an_hour
from uic_core import checkpoint, recipe
from uic_core.data.index import Index, build_folder
from uic_core.errors import INTERRUPTED, InputError
from uic_core.evaluate import linear_probe
from uic_core.evaluate.probes import Probes
from uic_core.evaluations import LinearProbe
from uic_core.methods import parse_run
from uic_core.models import build
from uic_core.run.parallel import Ranks
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[2]

PROTOCOL: dict[str, Any] = {
    "data": "imagenet", "layers": {"alexnet": ["conv1", "conv5"]}, "crop": {"alexnet": "random_crop"},
    "images": {"alexnet": 46},
    "val_images": {"alexnet": 0}, "epochs": 5, "batch_size": 9, "lr": 0.002, "lr_steps": [3], "momentum": 0.9,
    "weight_decay": 1e-3, "batch_norm": False, "seed": 0,
}  # fmt: skip


class Run:
    """Linear probes of one checkpoint, with their results in a folder of their own, as processes."""

    def __init__(self, inputs: Path, folder: Path, ranks: int = 1, **changes: Any) -> None:
        self.inputs, self.folder, self.ranks = inputs, folder, ranks
        self.checkpoint = inputs / "checkpoint.safetensors"
        self.out = folder / "linear_probe.json"
        self.protocol = folder / "protocol.yaml"
        recipe.save(recipe.parse(LinearProbe, PROTOCOL | changes, "test"), self.protocol)

    def arguments(self) -> list[str]:
        paths = {"checkpoint": self.checkpoint, "protocol": self.protocol, "out": self.out}
        paths |= {f"{split}-index": self.inputs / f"{split}.npz" for split in ("train", "val")}
        return ["--run", "random_sobel", *(text for name, path in paths.items() for text in (f"--{name}", str(path)))]

    def start(self, *arguments: str, afresh: bool = False) -> subprocess.Popen[str] | forked.Process:
        stage = ["tests.evaluate.small_probes", *self.arguments(), *arguments]
        if not afresh:
            return forked.Process(*stage, ranks=self.ranks, OMP_NUM_THREADS="1")
        command = [sys.executable, "-m"]
        if self.ranks > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks), "-m", "--"]
        return subprocess.Popen(
            [*command, *stage], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def finish(self, *arguments: str, afresh: bool = False) -> str:
        """Run to the end; what it printed."""
        process = self.start(*arguments, afresh=afresh)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        return out

    def states(self) -> list[Path]:
        found = self.folder.glob("linear_probe.state.*.safetensors")
        return [path for path in found if ".previous." not in path.name]

    def until_state(self, process: subprocess.Popen[str] | forked.Process, count: int) -> None:
        """Wait for a number of states."""
        seen: set[int] = set()
        while len(seen) < count:
            assert process.poll() is None, process.communicate()
            for path in self.states():
                try:
                    seen.add(path.stat().st_mtime_ns)
                except FileNotFoundError:  # between two states
                    continue
            time.sleep(0.001)

    def values(self, kept: Iterable[Path] = ()) -> Any:
        """The metrics' values; no state is left of the run, and `kept` are there."""
        left = {path.name for path in self.folder.iterdir()} - {path.name for path in kept}
        assert left == {".linear_probe.finished", "linear_probe.json", "protocol.yaml"}
        assert all(path.exists() for path in kept)
        return json.loads(self.out.read_text())["values"]


@pytest.fixture(scope="module")
def inputs(demo_data: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("inputs")
    for split in ("train", "val"):
        build_folder(demo_data.imagenet, split, "imagenet").save(folder / f"{split}.npz")
    made_by = read_yaml(ROOT / "config" / "demo.yaml")["runs"]["random_sobel"] | {"classes": 4}
    torch.manual_seed(0)
    network = build("alexnet", classes=4, image_size=64, sobel=True)
    checkpoint.save(folder / "checkpoint.safetensors", network, parse_run(made_by, "test"), {"data": "0"})
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    run = Run(inputs, tmp_path_factory.mktemp("undisturbed"))
    said = run.finish(afresh=True)
    values = run.values()
    assert 0 < values["conv1"]["value"] < 100  # so that it can differ
    return SimpleNamespace(values=values, said=said)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_a_random_place_it_ends_with_the_values_of_an_undisturbed_run(
    inputs: Path, tmp_path: Path, undisturbed: SimpleNamespace, ranks: int
) -> None:
    """Killed in training, in a test or while a state is written."""
    run = Run(inputs, tmp_path, ranks)
    process = run.start("--save-every", "0")
    run.until_state(process, random.randrange(1, 14))
    time.sleep(random.uniform(0, 0.02))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "going on from " in run.finish()
    alike = scores if ranks > 1 else dict
    assert alike(run.values()) == alike(undisturbed.values)


def test_told_to_end_it_saves_and_says_so(inputs: Path, tmp_path: Path, undisturbed: SimpleNamespace) -> None:
    run = Run(inputs, tmp_path, ranks=2)
    process = run.start("--save-every", "0", "--threads", "4", afresh=True)  # each with a process that decodes
    run.until_state(process, random.randrange(1, 14))
    os.killpg(process.pid, signal.SIGTERM)  # SLURM signals every process of a job
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0, out + err  # torchrun's own
    marker = (tmp_path / "linear_probe.interrupted").read_text()
    assert re.match(r".*, saved before (epoch \d, step \d|validation image \d+ of the test after epoch \d)", marker)
    assert "run the same command again" in marker
    assert not run.out.exists()
    run.ranks = 1
    assert ", with 1 processes where there were 2" in run.finish()
    assert scores(run.values()) == scores(undisturbed.values)


def test_told_to_end_in_a_test_it_goes_on_in_the_test(
    inputs: Path, tmp_path: Path, undisturbed: SimpleNamespace
) -> None:
    run = Run(inputs, tmp_path)
    process = run.start("--save-every", "0", "--threads", "2", afresh=True)
    assert isinstance(process, subprocess.Popen)
    assert process.stdout is not None
    while "epoch 4/" not in process.stdout.readline():
        assert process.poll() is None
    run.until_state(process, 3)
    os.killpg(process.pid, signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, err
    assert re.search(r"interrupted: SIGUSR1, saved before validation image \d+ of the test after epoch 4 in ", err)
    assert not run.out.exists()
    worked_an_hour(run.states())
    said = run.finish()
    assert "going on from validation image " in said
    assert "epoch 4/" not in said
    assert run.values() == undisturbed.values
    assert json.loads(run.out.read_text())["provenance"]["wall_seconds"] > 3600


@pytest.fixture(scope="module")
def interrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two states."""
    run = Run(inputs, tmp_path_factory.mktemp("interrupted"))
    process = run.start("--save-every", "0")
    run.until_state(process, 4)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert len(list(run.folder.glob("linear_probe.state.*"))) == 2
    return run.folder


@pytest.fixture
def copied(inputs: Path, interrupted: Path, tmp_path: Path) -> Run:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return Run(inputs, tmp_path)


def test_a_truncated_state_falls_back_to_the_previous_and_says_so(copied: Run, undisturbed: SimpleNamespace) -> None:
    (state,) = copied.states()
    content = state.read_bytes()
    state.write_bytes(content[: random.randrange(len(content))])
    (copied.folder / ".linear_probe.state.x.new.1.partial.safetensors").write_bytes(b"half")  # of a killed process
    said = copied.finish()
    assert f"{state}: is no whole state (" in said
    assert "the previous state is used" in said
    assert copied.values() == undisturbed.values


def test_no_usable_state_is_named_and_nothing_is_started_over(copied: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for state in copied.folder.glob("linear_probe.state.*"):
        state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(SystemExit) as stop:
        linear_probe.main(copied.arguments())
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.count("is no whole state (") == 2
    assert re.search(rf"remove {copied.folder}/linear_probe\.state\.\w{{16}}\.\* to start this run afresh", err)
    assert not copied.out.exists()


def other_protocol(run: Run) -> None:
    recipe.save(recipe.parse(LinearProbe, PROTOCOL | {"lr": 0.001}, "test"), run.protocol)


def other_checkpoint(run: Run) -> None:
    network, made_by = checkpoint.load(run.checkpoint)
    run.checkpoint = run.folder.with_suffix(".safetensors")
    checkpoint.save(run.checkpoint, network, made_by, {"data": "other"})


def other_images(run: Run) -> None:
    inputs, run.inputs = run.inputs, run.folder.with_suffix(".inputs")
    shutil.copytree(inputs, run.inputs)
    index = Index.load(inputs / "val.npz")
    replace(index, fingerprint="0" * 16).save(run.inputs / "val.npz")


@pytest.mark.parametrize("change", [other_protocol, other_checkpoint, other_images])
def test_a_state_of_something_else_is_never_used(
    copied: Run, capsys: pytest.CaptureFixture[str], change: Callable[[Run], None]
) -> None:
    theirs = list(copied.folder.glob("linear_probe.state.*"))
    change(copied)
    linear_probe.main(copied.arguments())
    said = capsys.readouterr().out
    assert "going on" not in said
    assert "epoch 1/5" in said
    copied.values(kept=theirs)


def losses(said: str) -> list[float]:
    found = [float(loss) for loss in re.findall(r"conv\d (\d+\.\d{4})", said)]
    assert len(found) == 2 * PROTOCOL["epochs"]
    return found


def scores(values: dict[str, Any]) -> dict[str, Any]:
    """All but the losses, whose last digits depend on the number of processes."""
    return {name: {key: each for key, each in value.items() if key != "loss"} for name, value in values.items()}


def test_two_processes_find_what_one_finds(inputs: Path, tmp_path: Path, undisturbed: SimpleNamespace) -> None:
    """Of 9 images a rank gets 5 and 4, of the last single one 1 and 0."""
    run = Run(inputs, tmp_path, ranks=2)
    assert losses(run.finish()) == pytest.approx(losses(undisturbed.said), abs=2e-4)
    assert scores(run.values()) == scores(undisturbed.values)
    assert json.loads(run.out.read_text())["protocol"]["processes"] == 2


def test_batch_norm_sees_the_images_of_its_own_process(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So two processes come near what one finds, and no nearer. The last 46 % 9 = 1 image is left out."""
    run = Run(inputs, tmp_path, ranks=2, batch_norm=True)
    two = losses(run.finish())
    linear_probe.main(run.arguments())
    one = losses(capsys.readouterr().out)
    assert one != pytest.approx(two, abs=2e-4)
    assert one[0] == pytest.approx(two[0], rel=0.2)


def test_batch_norm_over_single_images_is_refused(inputs: Path) -> None:
    network, _ = checkpoint.load(inputs / "checkpoint.safetensors")
    indexes = [Index.load(inputs / f"{split}.npz") for split in ("train", "val")]
    settings = recipe.parse(LinearProbe, PROTOCOL | {"batch_norm": True, "batch_size": 3}, "test")
    with pytest.raises(InputError, match=r"linear_probe.batch_size: 3 of 48 images for 2 process\(es\); .*raise it"):
        Probes(network, *indexes, settings, 73, ranks=Ranks(1, 2))
