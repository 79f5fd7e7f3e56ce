"""training.json, beside a run's checkpoint: which code made its files, on what, how fast, and their hashes.

Imports no torch.

Not in the checkpoint, whose bytes depend on the recipe alone: another commit that changes no number reruns nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from uic_core.errors import InputError
from uic_core.files import DAMAGED, RETRAIN, sha256, write_json
from uic_core.run.metrics import Record, code, cpu, seconds, today, versions

NAME = "training.json"

_LARGEST = 1e100  # number of a history that is taken for one


class Epoch(Record):
    """What an epoch took.

    Attributes:
        images: number of images that its steps drew.
        inputs: number of the network's inputs, those of label passes included; DeepCluster has two an image.
        training_seconds: time of the steps, with waiting for images and saved states.
        label_seconds: time of what makes, compares and groups labels.
    """

    images: int
    inputs: int
    training_seconds: float
    label_seconds: float


class Trained(Record):
    """The whole file. `files` maps the names of the files beside it to their SHA-256.

    `last` is the last line of history.jsonl: loss, learning rate, what the method measures … A training that was
    interrupted and resumed is described as its last process saw it, but for `epochs`, which have the times of all its
    processes. `recipe` is the hash of its recipe. `start` is the SHA-256, 16 digits, of the checkpoint that the run
    started from, its own or from elsewhere, and `start_stamp` that file's size and time: while it has these, it need
    not be hashed again. `start_path` is its place, if it is from elsewhere. `remark` belongs to every number of the
    run, e.g. that it diverged; '' if there is nothing to say. Earlier versions wrote none of these, nor `precision`.
    """

    commit: str
    dirty: bool
    date: str
    versions: dict[str, str]
    hardware: str
    processes: int
    wall_seconds: float
    last: dict[str, float | int] = Field(default_factory=dict)
    files: dict[str, str]
    recipe: str = ""
    start: str = ""
    start_stamp: list[int] = Field(default_factory=list)
    start_path: str = ""
    precision: str = ""
    remark: str = ""
    epochs: list[Epoch] = Field(default_factory=list)


def write(
    folder: Path, names: Sequence[str], hardware: str = "", processes: int = 1, *, recipe: str = "",
    precision: str = "", remark: str = "", last: Mapping[str, float] | None = None,
    epochs: Sequence[Mapping[str, Any]] = (), start: str = "", start_stamp: Sequence[int] = (), start_path: str = "",
) -> None:  # fmt: skip
    """Describe the files `names` of a run's folder.

    Args:
        hardware: names the accelerator; default: the CPU.
        last: the last line of the history; default: there is none.
        start, start_stamp, start_path: of the file that the run started from; default: there is none.
    """
    commit, dirty = code()
    made = Trained(
        commit=commit, dirty=dirty, date=today(), versions=versions(), hardware=hardware or cpu(), processes=processes,
        wall_seconds=round(seconds(), 2), files={name: sha256(folder / name) for name in names}, recipe=recipe,
        precision=precision, remark=remark, last=dict(last or {}), epochs=[Epoch(**each) for each in epochs],
        start=start[:16], start_stamp=list(start_stamp), start_path=start_path,
    )  # fmt: skip
    write_json(folder / NAME, made.model_dump())


def read(folder: Path) -> Trained | None:
    """Read a run's training.json; None if there is none. Raises InputError if it is damaged."""
    path = folder / NAME
    try:
        return Trained.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except DAMAGED as error:  # of which ValidationError is one
        raise InputError(f"{path}: is damaged ({type(error).__name__}); delete it") from error


def history(path: Path, *needed: str) -> list[dict[str, float]]:
    """Read a run's history.jsonl: the numbers of each epoch, by name.

    Args:
        needed: names that every epoch must have.

    Raises:
        InputError: the file is missing or damaged, a number is not finite, or an epoch lacks one; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {RETRAIN}") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epoch = {name: float(value) for name, value in json.loads(line).items()}
            if lacking := set(needed) - epoch.keys():
                raise ValueError(f"lacks {', '.join(sorted(lacking))}")
            if not all(abs(value) < _LARGEST for value in epoch.values()):
                raise ValueError("a number is not finite, or too large")
        except DAMAGED as error:
            raise InputError(f"{path}:{number}: is no epoch of a history ({error!r:.200}); {RETRAIN}") from error
        epochs.append(epoch)
    return epochs


def check(path: Path, digest: str) -> str:
    """Check that a run's file is the one that its training wrote.

    Args:
        digest: SHA-256 of the bytes that were read.

    Returns:
        The commit of the training, with `-dirty` if its code had changes; '' if training.json does not name the file.

    Raises:
        InputError: the training wrote other bytes, or training.json is damaged.
    """
    made, described = read(path.parent), path.parent / NAME
    if made is None or path.name not in made.files:
        return ""
    wanted = made.files[path.name]
    if wanted != digest:
        raise InputError(
            f"{path}: is not the file that the run's training wrote (SHA-256 {digest[:16]}, {described} says "
            f"{wanted[:16]}); put that file back, or delete {described} to take this one"
        )
    return made.commit + "-dirty" * made.dirty
