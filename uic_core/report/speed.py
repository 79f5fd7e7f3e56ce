"""Stage `speed`: how fast the runs trained, from their own records, as Markdown, HTML and CSV. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uic_core.arguments import stage_parser
from uic_core.errors import stage
from uic_core.files import unchanged, write_text
from uic_core.report.arguments import add_recipes, add_scale
from uic_core.report.origin import training
from uic_core.report.page import Block, Grid, Quote, Text, to_html, to_markdown
from uic_core.report.tables import DEMO
from uic_core.run.trained import Trained
from uic_core.strict_yaml import read_yaml

TITLE = "Speed of the trainings"
CSV_HEADER = (
    "run", "method", "arch", "image_size", "epochs", "images", "inputs", "training_seconds", "label_seconds",
    "seconds_an_epoch", "passes_an_image", "label_share", "images_a_second", "hardware", "processes", "precision",
    "commit", "date",
)  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """What a run's training took, all its epochs together.

    Attributes:
        images: number of images that the steps drew.
        inputs: number of the network's inputs, those of label passes included.
        training, labels: seconds of the steps, and of what makes, compares and groups labels.
        made: the run's training.json.
    """

    run: str
    method: str
    arch: str
    image_size: int
    images: int
    inputs: int
    training: float
    labels: float
    made: Trained

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return self.training + self.labels

    @property
    def place(self) -> str:
        """Where it ran: processes and hardware."""
        several = f"{self.made.processes} × " if self.made.processes > 1 else ""
        return several + self.made.hardware

    @property
    def regime(self) -> tuple[str, ...]:
        """What two runs must share for their times to be compared."""
        return f"{self.arch} at {self.image_size} pixels", self.place, self.made.precision


def read(history: Path, recipes: Mapping[str, str]) -> Speed | None:
    """Read a run's records; None if its training has left no times.

    Args:
        history: its history.jsonl, beside which lie recipe.yaml and training.json.
        recipes: run → hash of its recipe.

    Raises:
        InputError: a file is missing or damaged, or is of another training or recipe.
    """
    with unchanged(history=history) as hashes:
        made = training(history, hashes, recipes)
    if made is None or not made.epochs:
        return None
    recipe = read_yaml(history.with_name("recipe.yaml"))
    return Speed(
        history.parent.name, recipe["method"], recipe["arch"], recipe["image_size"],
        images=sum(epoch.images for epoch in made.epochs), inputs=sum(epoch.inputs for epoch in made.epochs),
        training=sum(epoch.training_seconds for epoch in made.epochs),
        labels=sum(epoch.label_seconds for epoch in made.epochs), made=made,
    )  # fmt: skip


def page(speeds: Sequence[Speed], without: Sequence[str], scale: str) -> list[Block]:
    """Build the page: a line a run, and the paper's claim held against those that can be compared.

    Args:
        without: runs that left no times.
    """
    head = ["Run", "Method", "Network", "Epochs", "s an epoch", "Forward passes an image", "Labels, % of the time"]
    head += ["Images a second", "Hardware", "Precision"]
    lines = [
        [
            f"`{each.run}`", each.method, f"{each.arch}, {each.image_size}", str(len(each.made.epochs)),
            f"{each.seconds / len(each.made.epochs):.1f}", f"{each.inputs / each.images:.2f}",
            f"{100 * each.labels / each.seconds:.1f}", f"{each.images / each.seconds:,.0f}", each.place,
            each.made.precision,
        ]
        for each in speeds
    ]  # fmt: skip
    told = (
        "An epoch is its steps, with waiting for images, and all work on labels: passes over the images for them, "
        "clustering, comparing and grouping. What is done between two epochs for the record does not count, nor does "
        "time in a queue, nor steps that were lost in an interruption. Hardware and precision are the last process's."
    )
    if without:
        told += f" No times are recorded of {', '.join(f'`{run}`' for run in without)}."
    return [
        *([Quote(DEMO)] if scale == "demo" else []),
        Text(f"**{TITLE}.**"),
        Grid(head, lines, ["left", "left", "left", *["right"] * 5, "left", "left"]),
        *(Text(line) for line in claim(speeds)),
        Text(told, foot=True),
        *([Text(_foot(speeds, scale), foot=True)] if speeds else []),
    ]


def claim(speeds: Sequence[Speed]) -> list[str]:
    """Hold the paper's claim against every run of DeepCluster that has runs of UIC under the same conditions beside it.

    An image of UIC's is that of all such runs that take their labels from the training forward.
    """
    said = (
        "**The paper** says that UIC's training is “twice faster than DeepCluster”, as it needs no extra forward "
        "pass for its labels (Section 1 and Fig. 1), and does not say on what it was measured."
    )
    found = []
    for peer in speeds:
        alike = [each for each in speeds if each.method == "uic" and each.inputs == each.images]
        alike = [each for each in alike if each.regime == peer.regime]
        if peer.method != "deepcluster" or not alike:
            continue
        own = sum(each.seconds for each in alike) / sum(each.images for each in alike)
        found.append(
            f"Here an image takes `{peer.run}` {peer.seconds / peer.images / own:.2f} times as long as UIC "
            f"({', '.join(f'`{each.run}`' for each in alike)}), in this regime: {', '.join(peer.regime)}; work on "
            f"labels is {100 * peer.labels / peer.seconds:.0f} % of its time."
        )
    if not found:
        found = ["Here no run of DeepCluster and of UIC trained under the same conditions."]
    where = (
        "The ratio is near 2 where decoding is the limit, and lower where arithmetic is, since a forward pass is a "
        "third of a training step: `bench/RESULTS.md`, methods."
    )
    return [said, *found, where]


def _foot(speeds: Sequence[Speed], scale: str) -> str:
    commits = dict.fromkeys(each.made.commit + " (dirty)" * each.made.dirty for each in speeds)
    dates = sorted({each.made.date for each in speeds})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"Scale: {scale}. Trained by: {', '.join(commits)}. Date: {when}."


def to_csv(speeds: Sequence[Speed]) -> str:
    """Write one CSV line a run; `label_share` is of 1."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for each in speeds:
        made = each.made
        numbers = [each.training, each.labels, each.seconds / len(made.epochs), each.inputs / each.images]
        numbers += [each.labels / each.seconds, each.images / each.seconds]
        writer.writerow([
            each.run, each.method, each.arch, each.image_size, len(made.epochs), each.images, each.inputs,
            *(round(number, 4) for number in numbers), made.hardware, made.processes, made.precision,
            made.commit + "-dirty" * made.dirty, made.date,
        ])  # fmt: skip
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Write the table. On an error, name it, write nothing and exit with 2."""
    parser = stage_parser("uic_core.report.speed", __doc__)
    parser.add_argument("--history", type=Path, nargs="+", required=True, help="runs/<run>/history.jsonl of every run")
    add_scale(parser)
    add_recipes(parser)
    parser.add_argument("--out", type=Path, required=True, help="Markdown")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--html", type=Path, required=True)
    options = parser.parse_args(arguments)
    with stage():
        found = {path.parent.name: read(path, options.recipes) for path in options.history}
        speeds = [speed for speed in found.values() if speed is not None]
        blocks = page(speeds, [run for run, speed in found.items() if speed is None], options.scale)
        write_text(options.csv, to_csv(speeds))
        write_text(options.html, to_html(TITLE, blocks))
        write_text(options.out, to_markdown(blocks))


if __name__ == "__main__":
    main()
