"""Stage `curves`: how every run trained, a panel each for what its history holds, as PNG and SVG.

After Fig. 2 of DeepCluster's paper, for all runs at once. The same inputs give the same bytes. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from uic_core.arguments import stage_parser
from uic_core.errors import stage
from uic_core.files import unchanged
from uic_core.report.arguments import add_recipes, add_scale
from uic_core.report.figures import DPI, INK, STYLE, WIDTH, foot_note, panel_letter, save
from uic_core.report.origin import training
from uic_core.run import trained

PANELS = {
    "nmi_previous": ("NMI with the previous epoch, %", 100),
    "nmi_annotated": ("NMI with annotations, %", 100),
    "empty_classes": ("empty classes", 1),
    "coverage": ("images seen in an epoch, %", 100),
    "loss": ("training loss", 1),
}
"""Quantity in the history → what is printed, and the factor to it."""
OF_LABELS = ("nmi_previous", "nmi_annotated", "empty_classes")

# Okabe and Ito's colours, which the colour-blind tell apart, without their yellow, which is faint on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.2)), (0, (1, 1)), (0, (6, 1, 1, 1)))
_FEW = 8  # epochs of a run whose points are marked: a line alone would hardly be seen
_HEIGHT = 4.5  # inches

History = list[dict[str, float]]


def read(path: Path, recipes: Mapping[str, str]) -> History:
    """Read a run's history.jsonl: one dictionary an epoch.

    Args:
        recipes: run → hash of its recipe.

    Raises:
        InputError: as `trained.history`; or the file is of another training or recipe.
    """
    with unchanged(history=path) as hashes:
        found = trained.history(path, "epoch")
        training(path, hashes, recipes)
    return found


def curve(history: History, quantity: str) -> tuple[list[float], list[float]]:
    """Return the finished epochs, from 1, and a quantity after each, as printed; both empty if the run has none.

    A run whose labels stay has no quantity of OF_LABELS.
    """
    stay = all(line.get("nmi_previous", 1.0) == 1 for line in history)
    if quantity in OF_LABELS and stay:
        return [], []
    factor = PANELS[quantity][1]
    shown = [(line["epoch"] + 1, factor * line[quantity]) for line in history if quantity in line]
    return [epoch for epoch, _ in shown], [value for _, value in shown]


def figure(histories: Mapping[str, History], note: str = "") -> Figure:
    """Draw a panel for each quantity, a line in it for each run that has it.

    Args:
        histories: by run, in the order of the legend.
        note: printed small at the foot.
    """
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, _HEIGHT), dpi=DPI)
        axes = drawn.subplots(2, 3).flatten()
        bottom = 0.108 + 0.022 * max(1, foot_note(drawn, note))
        drawn.subplots_adjust(left=0.07, right=0.99, top=0.95, bottom=bottom, wspace=0.27, hspace=0.38)
        last = max((line["epoch"] + 1 for history in histories.values() for line in history), default=1)
        for place, (quantity, panel) in enumerate(zip(PANELS, axes, strict=False)):
            for number, history in enumerate(histories.values()):
                epochs, values = curve(history, quantity)
                if epochs:
                    panel.plot(epochs, values, **_look(number, len(epochs)))
            _finish(panel, quantity, last, "abcde"[place])
        _legend(axes[-1], list(histories))
    return drawn


def _look(number: int, epochs: int) -> dict[str, Any]:
    """How the line of the run `number` is drawn."""
    look: dict[str, Any] = {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
        "linewidth": 1.1,
        "solid_capstyle": "butt",
    }
    return look | ({"marker": "o", "markersize": 2.2} if epochs <= _FEW else {})


def _finish(panel: Axes, quantity: str, last: float, letter: str) -> None:
    panel.set(xlim=(0, 1.02 * last), xlabel="epochs")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    panel.set_title(PANELS[quantity][0], loc="left", pad=4)
    panel_letter(panel, letter, rise=4)  # level with the title
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.5)
    panel.set_axisbelow(True)
    if quantity == "empty_classes":  # thousands at first, then few or none
        panel.set_yscale("symlog", linthresh=1)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.set_ylim(0, max(1, 1.4 * panel.get_ylim()[1]))  # room for a marker
    elif not panel.lines:
        panel.set_ylim(0, 1)


def _legend(panel: Axes, runs: Sequence[str]) -> None:
    panel.set_axis_off()
    handles = [Line2D([], [], label=run, **_look(number, _FEW + 1)) for number, run in enumerate(runs)]
    columns = 1 if len(runs) <= 20 else 2
    size = min(6.5, (110 if columns == 1 else 180) / len(runs))
    panel.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.12, 1.1), frameon=False, fontsize=size,
        handlelength=3.4, labelspacing=0.3, ncols=columns, columnspacing=1,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Draw the figure. On an error, name it and exit with 2."""
    parser = stage_parser("uic_core.report.curves", __doc__)
    parser.add_argument("--history", type=Path, nargs="+", required=True, help="runs/<run>/history.jsonl of every run")
    add_scale(parser)
    add_recipes(parser)
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    parser.add_argument("--svg", type=Path, required=True)
    options = parser.parse_args(arguments)
    with stage():
        histories = {path.parent.name: read(path, options.recipes) for path in options.history}
        stay = [run for run, history in histories.items() if not curve(history, OF_LABELS[0])[0]]
        notes = [f"not in a to c, as their labels stay: {', '.join(stay)}"] if stay else []
        notes += ["demo data: generated images, not ImageNet"] if options.scale == "demo" else []
        save(figure(histories, "   ·   ".join(notes)), options.out, options.svg)


if __name__ == "__main__":
    main()
