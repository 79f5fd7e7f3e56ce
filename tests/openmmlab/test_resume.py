"""Detection and segmentation that end early go on as if nothing was, in one process and in two.

They are forks (tests/forked.py), but for the undisturbed ones that they are held against.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import pytest
import safetensors
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from tests import forked, recipes
from tests.states import worked_an_hour
from uic_core import checkpoint, evaluations, models, recipe
from uic_core.errors import INTERRUPTED, InputError, Interrupted
from uic_core.openmmlab import proposals
from uic_core.openmmlab.resume import Draws, Resume, SeededDraws
from uic_core.run import metrics
from uic_core.run.parallel import ALONE, Ranks
from uic_core.run.saved_state import State
from uic_core.run.signals import Signals

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DETECTION: dict[str, Any] = {
    "train_scales": [64, 80], "train_max": 120, "test_scale": 64, "test_max": 100, "iterations": 8, "lr": 0.005,
    "lr_steps": [3, 5], "momentum": 0.9, "weight_decay": 5e-4, "images_per_batch": 2, "rois_per_batch": 16,
    "foreground": 0.25, "nms": 0.3, "rescale": True, "seed": 0,
}  # fmt: skip
SEGMENTATION: dict[str, Any] = {
    "pad": 16, "iterations": 16, "batch_size": 1, "accumulate": 2, "lr": 0.001, "lr_steps": [6, 12], "momentum": 0.9,
    "weight_decay": 5e-4, "seed": 0,
}  # fmt: skip


class Task:
    """A stage as a process, in a folder of its own."""

    def __init__(self, folder: Path, name: str, inputs: SimpleNamespace, ranks: int = 1) -> None:
        self.folder, self.name, self.ranks = folder, name, ranks
        settings = (
            evaluations.Detection(**DETECTION) if name == "detection" else evaluations.Segmentation(**SEGMENTATION)
        )
        recipe.save(settings, folder / "protocol.yaml")
        self.arguments = [
            "--checkpoint",
            str(inputs.weights),
            "--protocol",
            str(folder / "protocol.yaml"),
            "--run",
            "run",
        ]
        self.arguments += ["--out", str(folder / "out.json")]
        self.arguments += ["--work-dir", str(folder / "work"), "--save-every", "0"]
        self.arguments += ["--samples", str(folder / "samples.npz")]
        if name == "detection":
            self.arguments += ["--voc", str(inputs.voc07), "--train-proposals", str(inputs.boxes["trainval"])]
            self.arguments += ["--test-proposals", str(inputs.boxes["test"])]
        else:
            self.arguments += ["--dataset", str(inputs.dataset)]

    def start(self, *more: str, afresh: bool = False) -> subprocess.Popen[bytes] | forked.Process:
        stage = [f"uic_core.openmmlab.{self.name}", *self.arguments, *more]
        if not afresh:
            self.log.unlink(missing_ok=True)
            return forked.Process(*stage, ranks=self.ranks, out=self.log, OMP_NUM_THREADS="1")
        with self.log.open("w") as log:  # not a pipe, which mmengine's log would fill
            return subprocess.Popen(
                [sys.executable, "-m", *stage], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def ended(self, process: subprocess.Popen[bytes] | forked.Process) -> tuple[int, str]:
        """Exit status, and what was printed."""
        return process.wait(600), self.log.read_text()

    def states(self) -> set[Path]:
        return set((self.folder / "work").glob("state*"))

    def finish(self, *more: str, afresh: bool = False, kept: Collection[Path] = ()) -> tuple[str, dict[str, float]]:
        """What is printed, and the values; `kept`: the states that are there at the end."""
        status, out = self.ended(self.start(*more, afresh=afresh))
        assert status == 0, out[-4000:]
        assert self.states() == set(kept)
        assert not (self.folder / "work" / "interrupted").exists()
        return out, self.values()

    def values(self) -> dict[str, float]:
        return {name: value.value for name, value in metrics.read(self.folder / "out.json").values.items()}

    def until_state(self, process: subprocess.Popen[bytes] | forked.Process) -> None:
        while not list((self.folder / "work").glob("state.*.safetensors")):
            assert process.poll() is None, self.log.read_text()
            time.sleep(0.005)

    def until_trained(self, process: subprocess.Popen[bytes] | forked.Process) -> None:
        """Until the state at the training's end is saved."""
        last = 2 * DETECTION["iterations"] if self.name == "detection" else SEGMENTATION["iterations"]  # images
        done: list[int] = []
        while last not in done:
            assert process.poll() is None, self.log.read_text()
            done = []
            for path in (self.folder / "work").glob("state.*.safetensors"):
                with contextlib.suppress(RuntimeError, OSError), safetensors.safe_open(path, "pt") as file:  # replaced
                    done.append(json.loads(file.metadata()["state"])["images"])

    def weights(self) -> dict[str, torch.Tensor]:
        """What mmengine keeps of the end of the training."""
        (path,) = (self.folder / "work").glob("iter_*.pth")
        return torch.load(path, weights_only=False)["state_dict"]


@pytest.fixture(scope="module")
def inputs(demo_data: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("inputs")
    made = recipes.recipe(method="random", resize=64)
    torch.manual_seed(0)
    weights = folder / "checkpoint.safetensors"
    checkpoint.save(weights, models.build("alexnet", classes=5, image_size=64, sobel=True), made, {})
    settings = evaluations.Proposals(source="", mode="fast", shorter_side=48, max_boxes=40, min_side=8, seed=0)
    boxes = {split: folder / f"{split}.npz" for split in ("trainval", "test")}
    for split, path in boxes.items():
        proposals.make(demo_data.voc07, split, settings, processes=1).save(path)
    dataset = folder / "voc_segmentation.yaml"
    recipe.save(demo_data.datasets.one("voc_segmentation"), dataset)
    return SimpleNamespace(weights=weights, boxes=boxes, dataset=dataset, voc07=demo_data.voc07)


@pytest.fixture(scope="module")
def undisturbed(inputs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Task] = {}

    def task(name: str) -> Task:
        if name not in known:
            known[name] = Task(tmp_path_factory.mktemp(name), name, inputs)
            known[name].finish(afresh=True)
        return known[name]

    return task


def equal(one: Task, other: Task) -> bool:
    a, b = one.weights(), other.weights()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["detection", "segmentation"])
def test_killed_in_training_it_ends_with_the_weights_of_an_undisturbed_one(
    name: str, tmp_path: Path, inputs: SimpleNamespace, undisturbed: Any
) -> None:
    task = Task(tmp_path, name, inputs)
    process = task.start()
    task.until_state(process)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out.json").exists()
    worked_an_hour((tmp_path / "work").glob("state.*.safetensors"))
    out, values = task.finish("--threads", "3")  # with two decoding processes where there was none
    assert "going on from iteration" in out
    assert equal(task, undisturbed(name))
    assert values == undisturbed(name).values()
    assert metrics.read(tmp_path / "out.json").provenance.wall_seconds > 3600


@pytest.mark.parametrize(("name", "number"), [("detection", signal.SIGTERM), ("segmentation", signal.SIGUSR1)])
def test_told_to_end_it_saves_and_says_so(
    name: str, number: signal.Signals, tmp_path: Path, inputs: SimpleNamespace, undisturbed: Any
) -> None:
    task = Task(tmp_path, name, inputs)
    process = task.start("--threads", "3")
    task.until_state(process)
    os.killpg(process.pid, number)  # SLURM signals every process of a job: those that decode too
    status, out = task.ended(process)
    assert status == INTERRUPTED, out
    assert f"interrupted: {number.name}, saved before iteration" in out
    assert (tmp_path / "work" / "interrupted").exists()
    if name == "segmentation":
        unfinished = task.states()
        recipe.save(evaluations.Segmentation(**(SEGMENTATION | {"lr": 0.002})), tmp_path / "protocol.yaml")
        out, _ = task.finish(kept=unfinished)  # a state of other settings is left alone, also when this one is done
        assert "going on from" not in out
        recipe.save(evaluations.Segmentation(**SEGMENTATION), tmp_path / "protocol.yaml")
        out, values = task.finish()
        assert "going on from" in out
        assert values == undisturbed(name).values()
        return
    # Told to end in its test, it goes on with the test.
    process = task.start()
    task.until_trained(process)
    process.send_signal(number)
    status, out = task.ended(process)
    assert status == INTERRUPTED, out
    assert f"interrupted: {number.name}, saved before the test in" in out
    assert (tmp_path / "work" / "interrupted").exists()
    out, values = task.finish()
    assert f"going on from iteration {DETECTION['iterations'] + 1}" in out
    assert "Iter(train)" not in out
    assert values == undisturbed(name).values()


@pytest.mark.parametrize("name", ["detection", "segmentation"])
def test_two_processes_share_the_batches_and_the_test(
    name: str, tmp_path: Path, inputs: SimpleNamespace, undisturbed: Any
) -> None:
    task = Task(tmp_path, name, inputs, ranks=2)
    task.finish()
    found = metrics.read(tmp_path / "out.json")
    assert found.protocol["processes"] == 2
    assert found.values.keys() == metrics.read(undisturbed(name).folder / "out.json").values.keys()
    if name == "segmentation":  # the same images in every step: the same weights, but for the sums' order and dropout
        a, b = task.weights(), undisturbed(name).weights()
        bias = "decode_head.conv_seg.bias"
        assert torch.allclose(a[bias], b[bias], rtol=0.05, atol=1e-4)


def test_batches_that_do_not_divide_are_refused(tmp_path: Path, inputs: SimpleNamespace) -> None:
    task = Task(tmp_path, "detection", inputs, ranks=3)
    status, out = task.ended(task.start())
    assert status != 0
    assert "detection.images_per_batch: 2 images do not divide over 3 processes" in out


class _Group(Ranks):
    """Two ranks, of which the other was told to end; notes where the tensors of the group are."""

    devices: ClassVar[list[torch.device]] = []

    def add(self, values: torch.Tensor) -> torch.Tensor:
        self.devices.append(values.device)
        return torch.tensor([1.0, 0.0])

    def barrier(self) -> None:
        pass


def test_the_ranks_agree_on_the_device_of_their_group(tmp_path: Path) -> None:
    device = torch.device("meta")  # nccl takes the GPUs' tensors only; on this machine there may be none
    hook = Resume(State(tmp_path, {}, "a"), _Group(1, 2), Signals(), 0, 1, 60, device)
    hook.after_train_iter(SimpleNamespace(iter=4, max_iters=9), 4)  # heard a step later
    with pytest.raises(Interrupted, match="another rank was told to, saved before iteration 7"):
        hook.after_train_iter(SimpleNamespace(iter=5, max_iters=9), 5)
    hook.before_test_iter(SimpleNamespace(), 0)
    with pytest.raises(Interrupted, match="another rank was told to in the test, which begins anew"):
        hook.before_test_iter(SimpleNamespace(), 1)
    assert _Group.devices == [device, device]


def test_fault_41_a_test_of_a_task_that_is_longer_than_the_limit_is_not_queued_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Callable[[object], None]
) -> None:
    """The attempt that trained has saved and goes back into the queue; the next, which only tests, does not."""
    asks, signals = tmp_path / "asks", Signals()
    monkeypatch.setenv("UIC_SAVED", str(asks))
    signals.caught = "SIGUSR1"
    losses = SimpleNamespace(mean=lambda _: 2.5)
    for trained in (True, False):
        asks.unlink(missing_ok=True)
        hook = Resume(State(tmp_path, {}, "a"), ALONE, signals, 0, 1, 60, torch.device("cpu"))
        hook.after_train(_runner(torch.nn.Linear(2, 1), {"train/loss": losses} if trained else {}))
        with pytest.raises(Interrupted) as stop:
            hook.before_test_iter(SimpleNamespace(), 0)
        assert asks.exists() == trained
    seen(stop.value)
    assert str(stop.value).startswith("SIGUSR1 in the test, which begins anew in every attempt; if the job")
    found = State(tmp_path, {}, "a").load(print)
    assert found is not None
    assert found[1]["loss"] == 2.5


def test_fault_67_told_to_end_in_the_last_iteration_the_loss_is_not_lost(tmp_path: Path) -> None:
    """It says whether the training diverged. The state after the last iteration is the only one that has it."""
    signals, runner = Signals(), _runner(torch.nn.Linear(2, 1), {"train/loss": SimpleNamespace(mean=lambda _: 2.5)})
    hook = Resume(State(tmp_path, {}, "a"), ALONE, signals, 0, 1, 60, torch.device("cpu"))
    signals.caught, runner.iter = "SIGTERM", 1
    hook.after_train_iter(runner, 1)
    runner.iter = 2
    hook.after_train(runner)
    with pytest.raises(Interrupted, match="saved before the test"):
        hook.before_test_iter(runner, 0)
    found = State(tmp_path, {}, "a").load(print)
    assert found is not None
    assert (found[1]["images"], found[1]["loss"]) == (2, 2.5)


def _runner(model: torch.nn.Module, scalars: dict[str, object] | None = None) -> SimpleNamespace:
    """What the hook sees of mmengine's runner."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return SimpleNamespace(
        model=model, iter=0, max_iters=2, train_dataloader=SimpleNamespace(batch_size=1), param_schedulers=[],
        optim_wrapper=SimpleNamespace(optimizer=optimizer), logger=SimpleNamespace(info=print),
        message_hub=SimpleNamespace(log_scalars=scalars or {}),
    )  # fmt: skip


def test_a_state_that_is_not_finite_replaces_no_good_one(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    runner = _runner(model)
    runner.max_iters = 9
    state = State(tmp_path, {}, "a")
    hook = Resume(state, ALONE, Signals(), 0, 1, 0, torch.device("cpu"))
    hook.after_train_iter(runner, 0)
    good = state.path.read_bytes()
    torch.nn.init.constant_(model.weight, float("inf"))
    runner.iter = 1
    with pytest.raises(InputError, match=r"before iteration 3: model\.weight is not finite, .* lower its lr"):
        hook.after_train_iter(runner, 1)
    assert state.path.read_bytes() == good
    assert not state.previous.exists()


class _Mean(BaseModel):
    """A mean that learns the images' mean; keeps the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor, mode: str = "loss") -> dict[str, torch.Tensor]:
        self.seen += x.flatten().int().tolist()
        return {"loss": (self.mean - x).square().mean()}


class _Items:
    def __len__(self) -> int:
        return 7

    def __getitem__(self, draw: int) -> torch.Tensor:
        return torch.tensor([float(draw)])


class _Half(Ranks):
    """The first of two processes, of which the other always agrees."""

    def agree(self, values: list[int], device: torch.device) -> bool:
        return True

    def add(self, values: torch.Tensor) -> torch.Tensor:
        return values


def train(folder: Path, ranks: Ranks, iterations: int, accumulate: int, stop: int = 0) -> tuple[list[int], list[float]]:
    """Train as segmentation does, on one CPU: the draws that were seen, and the learning rate of every iteration."""
    loader = {"batch_size": 1, "num_workers": 0, "dataset": _Items(), "sampler": {"type": Draws, "seed": 0}}
    model, rates = _Mean(), []
    runner = Runner(
        model, str(folder), loader, train_cfg={"type": "IterBasedTrainLoop", "max_iters": iterations},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-3, "momentum": 0.9}, "accumulative_counts": accumulate},
        param_scheduler=[{"type": "MultiStepLR", "by_epoch": False, "milestones": [iterations // 2], "gamma": 0.1}],
        log_level="ERROR", experiment_name=uuid4().hex,  # runners of one name and one second share their losses
    )  # fmt: skip
    signals = SimpleNamespace(caught=None)

    class Watch(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            rates.append(runner.optim_wrapper.optimizer.param_groups[0]["lr"])
            signals.caught = "SIGTERM" if stop == runner.iter + 1 else None

    resume = Resume(State(folder, {}, "a"), ranks, signals, 0, accumulate, 1e9, torch.device("cpu"))
    runner.register_hook(Watch())
    runner.register_hook(resume, priority="LOWEST")
    with contextlib.suppress(Interrupted):
        runner.train()
    return model.seen, rates


def test_fault_27_a_segmentation_goes_on_in_another_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    # 40 passes in all, four a step; 24 by one process, the rest by two, of which this is the first.
    whole, _ = train(tmp_path / "whole", ALONE, 40, 4)
    first, _ = train(tmp_path / "half", ALONE, 40, 4, stop=24)
    assert first == whole[:24]
    monkeypatch.setattr("uic_core.openmmlab.resume.get_dist_info", lambda: (0, 2))
    rest, rates = train(tmp_path / "half", _Half(0, 2), 20, 2)
    assert rest == whole[24::2]  # the other process has those between
    assert rates == pytest.approx([1e-4] * 8)  # the rate has fallen after 20 passes
    # And back: what two processes left ends no training early.
    path = next((tmp_path / "half").glob("state.a.safetensors"))
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["state"])
    assert content["images"] == 40
    assert content["loss"] > 0  # decides whether the numbers are marked as those of a training that diverged
    monkeypatch.setattr("uic_core.openmmlab.resume.get_dist_info", lambda: (0, 1))
    again, _ = train(tmp_path / "half", ALONE, 40, 4)
    assert again == []
    with pytest.raises(InputError, match=r"trained on 40 images; .* 24 in all; take 2 process") as error:
        train(tmp_path / "half", ALONE, 24, 4)
    seen(error.value)
    state = State(tmp_path / "old", {}, "a")
    state.folder.mkdir()
    state.save({}, {"iteration": 24, "lr": [1e-4], "schedulers": []})
    with pytest.raises(InputError, match="an earlier version saved it, without the number of processes; remove"):
        train(tmp_path / "old", ALONE, 40, 4)


def test_draws_cover_every_image_once_a_pass_and_go_on_where_they_were() -> None:
    # Property, over several sizes: a pass is a permutation, draws are told apart, skipping n is leaving out n.
    for size in (1, 2, 7, 40):

        def take(number: int, skip: int = 0, seed: int = 3, size: int = size) -> list[int]:
            draws = Draws(range(size), seed)
            draws.skip(skip)
            return [draw for draw, _ in zip(draws, range(number), strict=False)]

        draws = take(5 * size)
        assert len(set(draws)) == 5 * size
        for number in range(5):
            assert sorted(draw % size for draw in draws[number * size : (number + 1) * size]) == list(range(size))
        assert take(3 * size, skip=2 * size) == draws[2 * size :]
        assert size < 7 or take(5 * size, seed=4) != draws


def test_an_items_randomness_is_its_draws_own() -> None:
    class Items:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[int, float]:
            return index, float(np.random.random())

    class Drawn(SeededDraws, Items):
        pass

    items = Drawn(seed=1)
    first = [items[draw] for draw in range(12)]
    assert [index for index, _ in first] == [0, 1, 2, 3] * 3
    assert [items[draw] for draw in reversed(range(12))] == first[::-1]
    assert len({number for _, number in first}) == 12
    assert Drawn(seed=2)[0] != first[0]
    assert json.dumps(first)
