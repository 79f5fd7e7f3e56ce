"""Where the workflow puts each file in a results folder, and what its logs and benchmarks are of. Imports no torch.

The rules spell the same paths out; the test of the whole workflow compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint.safetensors"
"""A run's trained network, in the folder of the run."""

TRAININGS = ("pretrain", "finetune", "external")
"""The rules that make a checkpoint."""

_OF_DATA = ("synthetic", "check", "index", "cache", "proposals")  # rules that make something of a whole data set


@dataclass(frozen=True)
class Layout:
    """The results folder `root`."""

    root: Path

    def run(self, run: str) -> Path:
        """Return the folder of a run's training."""
        return self.root / "runs" / run

    def checkpoint(self, run: str) -> Path:
        """Return a run's checkpoint."""
        return self.run(run) / CHECKPOINT

    def metrics(self, run: str, evaluation: str) -> Path:
        """Return the metrics of a run; `<evaluation>.seeds` names their mean over seeds."""
        return self.root / "metrics" / run / f"{evaluation}.json"

    def protocol(self, evaluation: str) -> Path:
        """Return the section of an evaluation, as its stage reads it."""
        return self.root / "protocols" / f"{evaluation}.yaml"

    def dataset(self, data: str) -> Path:
        """Return the section of a data set, likewise."""
        return self.root / "data" / f"{data}.yaml"

    def checked(self, data: str) -> Path:
        """Return what the check of a data set found."""
        return self.root / "data" / f"{data}.checked"

    def index(self, data: str, split: str) -> Path:
        """Return the list of a data set's images; split `train_cached` lists those of the cache."""
        return self.root / "index" / f"{data}_{split}.npz"

    def proposals(self, split: str) -> Path:
        """Return VOC07's boxes for detection."""
        return self.root / "proposals" / f"voc07_{split}.npz"

    def log(self, owner: str, job: str) -> Path:
        """Return the log of a job. Its owner is a run, `data`, `protocols` or `report`."""
        return self.root / "logs" / owner / f"{job}.log"

    def metrics_log(self, run: str, evaluation: str) -> Path:
        """Return the log of the job that makes `metrics(run, evaluation)`."""
        of_seeds = evaluation.endswith(".seeds")
        return self.log(run, f"seeds_{evaluation.removesuffix('.seeds')}" if of_seeds else evaluation)

    def made_by(self, log: Path) -> Path:
        """Return a file that the job of a log makes."""
        owner, job, rule = log.parent.name, log.stem, rule_of(log)
        name = job.removeprefix(f"{rule}_")
        made = {
            "synthetic": self.root / "data" / f"{name}.generated",
            "check": self.checked(name),
            "index": self.root / "index" / f"{name}.npz",
            "cache": self.index(name, "train_cached"),
            "proposals": self.proposals(name),
            "dataset": self.dataset(job),
            "protocol": self.protocol(job),
            "recipe": self.run(owner) / "recipe.yaml",
            "export": self.root / "export" / owner / "README.md",
            "seeds": self.metrics(owner, f"{name}.seeds"),
            "summary": self.root / "README.md",
            "index_page": self.root / "index.html",
            **dict.fromkeys(TRAININGS, self.checkpoint(owner)),
        }
        if rule in made:
            return made[rule]
        if owner == "report":  # table_detection makes detection.md, table3 table3.md
            shown = job.partition("_")[2] or job
            kind = ("tables", "md") if job.startswith("table") else ("figures", "png")
            return self.root / kind[0] / f"{shown}.{kind[1]}"
        return self.metrics(owner, job)


def rule_of(path: Path) -> str:
    """Return the rule that wrote a log or benchmark: <run>/<rule>, data/<rule>_<data set>, protocols/…, report/…"""
    owner, job = path.parent.name, path.stem
    if owner == "protocols":
        return "protocol"
    if owner == "data":
        first = job.partition("_")[0]
        return first if first in _OF_DATA else "dataset"
    return "seeds" if job.startswith("seeds_") else job
