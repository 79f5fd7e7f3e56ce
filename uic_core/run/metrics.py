"""The metrics JSON: the results of one evaluation of one run. Tables use nothing else. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from uic_core.errors import InputError
from uic_core.files import DAMAGED, write_json

_CODE = ("Snakefile", "envs", "uic_core", "workflow")
"""What decides numbers: only changes here make the code `dirty`. Config and profiles are there to be edited."""

_ROUNDING = 1e-6  # points that the rounding of a sum may lie outside 0..100

_STARTED = time.monotonic()  # start of the process: each stage is a process


class Record(BaseModel):
    """Base of what stages record as JSON: frozen, no unknown keys, no conversion of text to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Value(Record):
    """One number. Percentages are 0..100. `ci95` is the half width of the 95 % interval over `n` samples.

    With several `seeds`, `value` is their mean and `std` their standard deviation (n - 1). `remark` is what a reader
    must know before he reads the number, e.g. that its training diverged; tables print it. `loss` is the mean training
    loss of the last epoch over that of a guess, the same score for every class: above 1 the training has not converged.
    Of several seeds it is the largest.
    """

    value: float
    unit: str
    ci95: float | None = Field(None, ge=0)
    n: int | None = Field(None, ge=0)
    std: float | None = Field(None, ge=0)
    seeds: int | None = Field(None, ge=1)
    remark: str = ""
    loss: float | None = Field(None, ge=0)

    @field_validator("value", "ci95", "std", "loss")
    @classmethod
    def _finite(cls, number: float | None) -> float | None:
        if number is not None and not math.isfinite(number):
            raise ValueError(f"is {number}, not a finite number")
        return number

    @model_validator(mode="after")
    def _percentage(self) -> Value:
        if self.unit.startswith("%") and not -_ROUNDING <= self.value <= 100 + _ROUNDING:
            raise ValueError(f"is {self.value} {self.unit}, not 0 to 100")
        return self


def percent(share: float, n: int, remark: str = "", loss: float | None = None) -> Value:
    """Turn a share of n samples, 0..1, into percent with its binomial interval, ± 1.96·√(p(1 − p)/n)."""
    interval = 1.96 * math.sqrt(share * (1 - share) / n)
    return Value(value=100 * float(share), unit="%", ci95=100 * interval, n=n, remark=remark, loss=loss)


class Dataset(Record):
    """The evaluated data set: the fingerprint of its index and the number of images per split."""

    name: str
    fingerprint: str
    sizes: dict[str, int]


@dataclass(frozen=True)
class Origin:
    """What an evaluation looks at: a run's checkpoint, as `uic_core.checkpoint.of_run` read it.

    Attributes:
        checkpoint: SHA-256 of the bytes that were read.
        recipe: hash of the run's recipe.
        coverage: share of the network's weights that the checkpoint filled, 0..1.
        seeds: the seed that the run was trained with; none if it was trained elsewhere.
        trained_by: commit of the code that made the checkpoint; '' if unknown.
        stamp: size and time of the checkpoint file before it was read.
        remark: what the training says of all numbers of it, e.g. that it diverged; '' if nothing.
    """

    run: str
    checkpoint: str
    recipe: str
    coverage: float
    seeds: tuple[int, ...]
    trained_by: str
    stamp: tuple[int, ...] = ()
    remark: str = ""


class Provenance(Record):
    """Origin of a number, sufficient to reproduce it.

    `commit` is the evaluation's code, `trained_by` that of the training, '' if unknown. `seed` is the evaluation's,
    `run_seeds` are those of the training, none if it was done elsewhere. `coverage` is the share of the network's
    weights that its checkpoint filled. It is below 1 only for checkpoints of other code bases, whose top layer may be
    missing. `files` holds the first 16 hex digits of the SHA-256 of files that were read or written beside the metrics.
    `checkpoint_stamp` is the size and time of the checkpoint file: while it has these, it need not be hashed again.
    `stamps` has the same of some of `files`.
    """

    commit: str
    dirty: bool
    trained_by: str
    date: str
    recipe_hash: str
    checkpoint_hash: str
    checkpoint_stamp: list[int] = Field(default_factory=list)
    coverage: float = Field(ge=0, le=1)
    seed: int
    run_seeds: list[int]
    files: dict[str, str] = Field(default_factory=dict)
    stamps: dict[str, list[int]] = Field(default_factory=dict)
    versions: dict[str, str]
    hardware: str
    wall_seconds: float
    peak_memory_mb: float


class Metrics(Record):
    """The whole file: `values` maps a table's column to its number, `protocol` holds every setting that affects it."""

    evaluation: str
    run: str
    dataset: Dataset
    values: dict[str, Value]
    protocol: dict[str, Any]
    provenance: Provenance


def seconds() -> float:
    """Seconds since this process began."""
    return time.monotonic() - _STARTED


def provenance(
    origin: Origin,
    *,
    seed: int,
    hardware: str = "",
    earlier_seconds: float = 0.0,
    files: Mapping[str, str] | None = None,
    stamps: Mapping[str, list[int]] | None = None,
) -> Provenance:
    """Collect the provenance of the current process.

    Args:
        hardware: name of the accelerator; default: name of the CPU.
        earlier_seconds: run time of interrupted processes that this one resumed. Memory counts this process only.
        files: SHA-256 by name.
        stamps: size and time, before they were read, of those of `files` that other stages made.
    """
    commit, dirty = code()
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Provenance(
        commit=commit,
        dirty=dirty,
        trained_by=origin.trained_by,
        date=today(),
        recipe_hash=origin.recipe,
        checkpoint_hash=origin.checkpoint[:16],
        checkpoint_stamp=list(origin.stamp),
        coverage=origin.coverage,
        seed=seed,
        run_seeds=list(origin.seeds),
        files={name: digest[:16] for name, digest in (files or {}).items()},
        stamps=dict(stamps or {}),
        versions=versions(),
        hardware=hardware or cpu(),
        wall_seconds=round(earlier_seconds + seconds(), 2),
        peak_memory_mb=round(kilobytes / 1024, 1),
    )


def record(
    path: Path, evaluation: str, origin: Origin, *, dataset: Dataset, values: dict[str, Value],
    protocol: dict[str, Any], seed: int, hardware: str = "", earlier_seconds: float = 0.0,
    files: Mapping[str, str] | None = None, stamps: Mapping[str, list[int]] | None = None,
) -> None:  # fmt: skip
    """Write what an evaluation found of a run's checkpoint, with the provenance of this process.

    What the training remarked stands on every value, before the evaluation's own remark.

    Args:
        protocol: every setting that changes the values.
        hardware, earlier_seconds, files, stamps: as in `provenance`.
    """
    made = provenance(origin, seed=seed, hardware=hardware, earlier_seconds=earlier_seconds, files=files, stamps=stamps)
    if origin.remark:
        values = {
            name: value.model_copy(update={"remark": "; ".join(filter(None, (origin.remark, value.remark)))})
            for name, value in values.items()
        }
    found = Metrics(
        evaluation=evaluation, run=origin.run, dataset=dataset, values=values, protocol=protocol, provenance=made
    )
    write(path, found)


def write(path: Path, metrics: Metrics) -> None:
    """Write metrics and their checksum, atomically. All values are finite: the constructor refuses others."""
    write_json(path, sealed(metrics.model_dump()))


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Add `checksum` to the content of a metrics JSON: the SHA-256 of all else in it, whatever its order or spacing."""
    content = {key: value for key, value in json.loads(json.dumps(content)).items() if key != "checksum"}
    return content | {"checksum": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def diverged(first: float, last: float, guess: float, lr: float) -> str:
    """The remark on numbers of a training whose loss ended at twice that of a guess and of its beginning; else ''.

    Args:
        first, last: mean training loss at the beginning and at the end; first may be the guess's.
        guess: loss of the same score for every class.
        lr: the learning rate that the training began with.
    """
    if not last > 2 * max(first, guess):
        return ""
    end = f"{last:,.1f}" if last < 1e6 else f"{last:.0e}"
    told = f"ended at {end}" if first == guess else f"went from {first:,.1f} to {end}"
    return f"diverged: the training loss {told}, a guess has {guess:,.1f}; lr {lr:g}"


def read(path: Path) -> Metrics:
    """Read and validate a metrics JSON.

    Raises:
        InputError: missing, not JSON, of a wrong form, with a value that is not finite or out of range, or changed by
            hand; says how to remake the file.
    """
    remedy = "delete the file and run snakemake again"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        checksum = content.pop("checksum", None) if isinstance(content, dict) else None
        found = Metrics.model_validate(content)
        now = sealed(content)["checksum"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run snakemake to make it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}; {remedy}") from None
    except DAMAGED as error:
        raise InputError(f"{path}: is not JSON ({error}); {remedy}") from None
    if checksum != now:
        what = (
            "has no checksum: an earlier version wrote it, or it" if checksum is None else "its checksum is wrong: it"
        )
        raise InputError(f"{path}: {what} was changed by hand; {remedy}")
    return found


def today() -> str:
    """The date, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


@functools.cache
def code() -> tuple[str, bool]:
    """(commit, dirty) of the running code when first asked; ('unknown', True) outside a checkout."""
    folder = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain", "--", *_CODE))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "onedl-mmcv", "onedl-mmdetection", "onedl-mmsegmentation"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu() -> str:
    """Name of the CPU and number of its cores."""
    name = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name} ({os.cpu_count()} cores)"
