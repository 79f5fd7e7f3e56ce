"""training.json, beside a run's checkpoint: which code made its files, on what, and their hashes. Imports no torch.

Not in the checkpoint, whose bytes depend on the recipe alone: another commit that changes no number reruns nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from uic_core.errors import InputError
from uic_core.files import sha256, write_json
from uic_core.run.metrics import Record, code, cpu, seconds, today, versions

NAME = "training.json"


class Trained(Record):
    """The whole file. `files` maps the names of the files beside it to their SHA-256.

    `last` is the last line of history.jsonl: loss, learning rate, what the method measures … A training that was
    interrupted and resumed is described as its last process saw it.
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


def write(
    folder: Path, names: Sequence[str], hardware: str = "", processes: int = 1, last: Mapping[str, float] | None = None
) -> None:
    """Describe the files `names` of a run's folder.

    Args:
        hardware: names the accelerator; default: the CPU.
        last: the last line of the history; default: there is none.
    """
    commit, dirty = code()
    made = Trained(
        commit=commit, dirty=dirty, date=today(), versions=versions(), hardware=hardware or cpu(), processes=processes,
        wall_seconds=round(seconds(), 2), last=dict(last or {}), files={name: sha256(folder / name) for name in names},
    )  # fmt: skip
    write_json(folder / NAME, made.model_dump())


def check(path: Path, digest: str) -> str:
    """Check that a run's file is the one that its training wrote.

    Args:
        digest: SHA-256 of the bytes that were read.

    Returns:
        The commit of the training, with `-dirty` if its code had changes; '' if training.json does not name the file.

    Raises:
        InputError: the training wrote other bytes, or training.json is damaged.
    """
    described = path.parent / NAME
    try:
        made = Trained.model_validate(json.loads(described.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:  # of which ValidationError is one
        raise InputError(f"{described}: is damaged ({type(error).__name__}); delete it") from error
    wanted = made.files.get(path.name)
    if wanted is None:
        return ""
    if wanted != digest:
        raise InputError(
            f"{path}: is not the file that the run's training wrote (SHA-256 {digest[:16]}, {described} says "
            f"{wanted[:16]}); put that file back, or delete {described} to take this one"
        )
    return made.commit + "-dirty" * made.dirty
