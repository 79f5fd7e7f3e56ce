"""The metrics JSON: the results of one evaluation of one run. Tables use nothing else. Imports no torch."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import resource
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from uic_core.errors import InputError
from uic_core.files import sha256, write_json

_STARTED = time.monotonic()  # start of the process: each stage is a process


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(_Model):
    """One number. Percentages are 0..100. `ci95` is the half width of the 95 % interval over `n` samples.

    With several `seeds`, `value` is their mean and `std` their standard deviation (n - 1).
    """

    value: float
    unit: str
    ci95: float | None = None
    n: int | None = None
    std: float | None = None
    seeds: int | None = None

    @field_validator("value", "ci95", "std")
    @classmethod
    def _finite(cls, number: float | None) -> float | None:
        if number is not None and not math.isfinite(number):
            raise ValueError(f"is {number}, not a finite number")
        return number


class Dataset(_Model):
    """The evaluated data set: the fingerprint of its index and the number of images per split."""

    name: str
    fingerprint: str
    sizes: dict[str, int]


class Provenance(_Model):
    """Origin of a number, sufficient to reproduce it.

    `coverage` is the share of the network's weights that its checkpoint filled. It is below 1 only for checkpoints of
    other code bases, whose top layer may be missing.
    """

    commit: str
    dirty: bool
    date: str
    recipe_hash: str
    checkpoint_hash: str
    coverage: float
    seed: int
    versions: dict[str, str]
    hardware: str
    wall_seconds: float
    peak_memory_mb: float


class Metrics(_Model):
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
    *, recipe_hash: str, checkpoint: Path, coverage: float, seed: int, hardware: str = "", earlier_seconds: float = 0.0
) -> Provenance:
    """Collect the provenance of the current process.

    Args:
        hardware: name of the accelerator; default: name of the CPU.
        earlier_seconds: run time of interrupted processes that this one resumed. Memory counts this process only.
    """
    commit, dirty = _git()
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Provenance(
        commit=commit,
        dirty=dirty,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        recipe_hash=recipe_hash,
        checkpoint_hash=sha256(checkpoint)[:16],
        coverage=coverage,
        seed=seed,
        versions=_versions(),
        hardware=hardware or f"{_cpu()} ({os.cpu_count()} cores)",
        wall_seconds=round(earlier_seconds + seconds(), 2),
        peak_memory_mb=round(kilobytes / 1024, 1),
    )


def record(
    path: Path, evaluation: str, run: str, checkpoint: Path, *, recipe_hash: str, coverage: float, dataset: Dataset,
    values: dict[str, Value], protocol: dict[str, Any], seed: int, hardware: str = "", earlier_seconds: float = 0.0,
) -> None:  # fmt: skip
    """Write what an evaluation found of a run's checkpoint, with the provenance of this process.

    Args:
        protocol: every setting that changes the values.
        hardware, earlier_seconds: as in `provenance`.
    """
    made = provenance(
        recipe_hash=recipe_hash, checkpoint=checkpoint, coverage=coverage, seed=seed, hardware=hardware,
        earlier_seconds=earlier_seconds,
    )  # fmt: skip
    write(
        path,
        Metrics(evaluation=evaluation, run=run, dataset=dataset, values=values, protocol=protocol, provenance=made),
    )


def write(path: Path, metrics: Metrics) -> None:
    """Write metrics atomically. All values are finite: the constructor refuses others."""
    write_json(path, metrics.model_dump())


def read(path: Path) -> Metrics:
    """Read and validate a metrics JSON.

    Raises:
        InputError: missing, not JSON, of a wrong form or with a value that is not finite; says how to remake the file.
    """
    remedy = "delete the file and run snakemake again"
    try:
        return Metrics.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run snakemake to make it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); {remedy}") from None


@functools.cache
def _git() -> tuple[str, bool]:
    """(commit, dirty) of the running code; ('unknown', True) outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "onedl-mmcv", "onedl-mmdetection", "onedl-mmsegmentation"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
