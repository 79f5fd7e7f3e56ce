"""State files: whatever a killed process leaves, the newest whole one is found, and none is lost to a broken one."""

import json
import os
import time
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch

from tests import waiting
from uic_core.errors import InputError
from uic_core.run import metrics
from uic_core.run.parallel import ALONE, Ranks
from uic_core.run.saved_state import Saver, State
from uic_core.run.signals import Signals

IDENTITY = {"recipe": {"lr": 0.1, "epochs": 5}, "hash": "aaaa", "data": "images"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the process runs on."""


def stage(folder: Path, **changes: object) -> State:
    """The stage's next process."""
    return State(folder, IDENTITY | changes, str(changes.get("hash", "aaaa")), alone=True)


def saved(state: State, *numbers: int) -> State:
    for number in numbers:
        state.save({"weight": torch.full((100,), float(number))}, {"step": number})
    return state


def loaded(folder: Path) -> tuple[int, list[str]]:
    """What a new process finds, and says."""
    said: list[str] = []
    found = stage(folder).load(said.append)
    assert found is not None
    assert (found[2]["weight"] == found[1]["step"]).all()
    return found[1]["step"], said


@pytest.mark.parametrize(
    "keep", [0, 5, 8, 200, -1], ids=["nothing", "half a length", "no header", "no weight", "all but a byte"]
)
def test_truncated_anywhere_the_one_before_is_used_and_outlives_the_broken_one(tmp_path, keep):
    first = saved(stage(tmp_path), 1, 2)
    first.path.write_bytes(first.path.read_bytes()[:keep])
    again = stage(tmp_path)
    said: list[str] = []
    found = again.load(said.append)
    assert found is not None
    assert found[1]["step"] == 1
    assert f"{first.path}: is no whole state (" in said[0]
    assert "the previous state is used" in said[0]
    saved(again, 3)
    assert loaded(tmp_path) == (3, [])
    again.path.write_bytes(b"")  # broken once more: the one before it must be a whole one
    assert loaded(tmp_path)[0] == 1


@pytest.mark.parametrize("renames", [1, 2, 3, 4])
def test_killed_while_a_state_takes_its_place_nothing_is_lost(tmp_path, monkeypatch, renames):
    """The new file's own name, its way into the folder, the old one's second name, the new one's place."""
    saved(stage(tmp_path), 1, 2)
    replace, calls = os.replace, []

    def killed(*names):
        calls.append(names)
        if len(calls) == renames:
            raise Killed
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            saved(stage(tmp_path), 3)
    assert loaded(tmp_path) == (2 if renames <= 2 else 3, [])
    again = stage(tmp_path)
    again.load(print)
    saved(again, 4)
    assert loaded(tmp_path) == (4, [])
    again.path.unlink()
    assert loaded(tmp_path) == (2 if renames <= 2 else 3, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.aaaa.previous.safetensors"]


def test_the_time_of_all_processes_is_kept_and_earlier_versions_kept_none(tmp_path, monkeypatch):
    for processes in (1, 2):
        monkeypatch.setattr(metrics, "_STARTED", time.monotonic() - 3600)
        state = stage(tmp_path)
        state.load(print)
        saved(state, processes)
        again = stage(tmp_path)
        again.load(print)
        assert again.earlier_seconds == pytest.approx(3600 * processes, abs=60)
    safetensors.torch.save_file({"weight": torch.ones(1)}, state.path, {"state": json.dumps(IDENTITY)})
    assert again.load(print) is not None
    assert again.earlier_seconds == 0


def test_loading_changes_nothing(tmp_path):
    """Each rank loads, when another may write already."""
    state = saved(stage(tmp_path), 1, 2)
    state.path.write_bytes(b"half")
    leftover = tmp_path / ".tmpr2TK69"
    leftover.write_bytes(b"half")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    loaded(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = stage(tmp_path)
    again.load(print)
    saved(again, 3)
    assert not leftover.exists()


def test_an_unfinished_state_of_another_recipe_is_refused_with_both_hashes_and_the_keys(tmp_path):
    theirs = saved(stage(tmp_path), 1, 2)
    other = stage(tmp_path, hash="bbbb", recipe={"lr": 0.2, "epochs": 5})
    with pytest.raises(InputError) as refused:
        other.load(print)
    assert str(refused.value) == (
        f"{theirs.previous}: is the unfinished state of another run (recipe.lr: 0.1 there, 0.2 here; hash: aaaa there, "
        f"bbbb here); restore what it has to go on with it, or remove {tmp_path}/state.aaaa.* to start afresh"
    )
    theirs.previous.write_bytes(b"half")
    with pytest.raises(InputError, match=r"is of another run, and no whole state .*; remove \S+/state\.aaaa\.\*$"):
        other.load(print)
    for file in tmp_path.glob("state.aaaa.*"):
        file.unlink()
    assert other.load(print) is None


def test_evaluations_leave_states_of_other_settings_alone(tmp_path):
    theirs = saved(stage(tmp_path), 1)
    other = State(tmp_path, IDENTITY | {"hash": "bbbb"}, "bbbb")
    assert other.load(print) is None
    saved(other, 2)
    assert theirs.path.exists()


def test_an_evaluation_that_ends_deletes_its_own_state_and_abandoned_ones_alone(tmp_path):
    """Another setting's may be days of a GPU; what nobody has touched for a month is nobody's."""
    own, theirs, old = (State(tmp_path, IDENTITY | {"hash": name}, name) for name in ("aaaa", "bbbb", "cccc"))
    for state in (own, theirs, old):
        saved(state, 1, 2)
    for path, days in ((theirs.path, 29), (old.path, 31), (old.previous, 31)):
        os.utime(path, (time.time() - days * 24 * 3600,) * 2)
    own.marker.write_text("interrupted\n")
    own.remove()
    assert {*tmp_path.iterdir()} == {theirs.path, theirs.previous}
    found = theirs.load(print)
    assert found is not None
    assert found[1]["step"] == 2


def test_a_stage_that_ends_leaves_alone_what_another_one_is_writing_in_its_folder(tmp_path, monkeypatch):
    """Evaluations of one run share a folder. safetensors writes a file of its own naming, and then moves it."""
    own, other = (State(tmp_path, {}, "a", prefix=prefix) for prefix in ("linear_probe.", "knn."))

    def write(tensors, file, metadata):
        part = Path(file).with_name(".tmpr2TK69")
        part.write_bytes(safetensors.torch.save(tensors, metadata))
        other.remove()
        os.replace(part, file)

    monkeypatch.setattr(safetensors.torch, "save_file", write)
    own.save({"weight": torch.ones(2)}, {})
    found = own.load(print)
    assert found is not None
    assert found[2]["weight"].tolist() == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear_probe.state.a.safetensors"]


def test_one_process_asks_no_other_and_a_signal_is_its_wish(tmp_path):
    with Signals() as signals:
        saver = Saver(stage(tmp_path), ALONE, signals, 1000)
        assert saver.agreed(1000, torch.device("cpu")) == [0, 0]
        signals.caught = "SIGTERM"
        assert saver.agreed(0, torch.device("cpu")) == [1, 1]


class Two(Ranks):
    """One of two ranks; the other one asks for what `others` says, in turn."""

    others: ClassVar[list[list[float]]] = []

    def add(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.tensor(self.others.pop(0))

    def barrier(self) -> None: ...


def test_ranks_hear_a_request_at_the_next_place_and_once(tmp_path):
    cpu = torch.device("cpu")
    with Signals() as signals:
        alone = Saver(stage(tmp_path), ALONE, signals, 1000)
        saver = Saver(stage(tmp_path), Two(0, 2), signals, 1000)
        Two.others = [[0, 0], [1, 0], [0, 0], [0, 0]]
        with waiting.never():
            assert alone.exchanged(1000, cpu) == saver.exchanged(1000, cpu) == [0, 0]
        assert [saver.exchanged(1000, cpu) for _ in range(2)] == [[0, 0], [1, 0]]
        assert len(Two.others) == 2, "while a request is heard nothing is sent"
        assert [saver.exchanged(1000, cpu) for _ in range(2)] == [[0, 0], [0, 0]]
        signals.caught = "SIGTERM"
        assert alone.exchanged(0, cpu) == [1, 1]
