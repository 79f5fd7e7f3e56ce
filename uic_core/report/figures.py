"""Stage `figures`: Fig. 3 (class sizes) and Fig. 4 (lowest-entropy pseudo-classes), as PNG and SVG.

Made from the output of evaluation `clusters`. The same inputs give the same bytes. Imports no torch.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from uic_core.arguments import stage_parser
from uic_core.data import reader
from uic_core.data.index import Index
from uic_core.errors import InputError, stage
from uic_core.evaluations.clusters import ClusterArrays
from uic_core.files import atomic
from uic_core.report.arguments import add_recipes, add_scale
from uic_core.report.origin import read_with
from uic_core.run import metrics as metrics_file

INK, GREY, BLUE, RED = "#222222", "#6b6b6b", "#3b6e9e", "#c4512d"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so all machines draw the same
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "uic_core",
}
DPI = 300
WIDTH = 6.9  # inches, the text width of a two-column page
THUMBNAIL, GAP = 128, 8  # pixels
_LINE = 125  # characters of a note
_WIDEST = 0.9  # inches, a thumbnail of Fig. 4 where the rows are short


def bin_edges(sizes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Compute edges of equally wide histogram bins; edges lie between integers, so that no size falls on one.

    The width follows Freedman and Diaconis (1981), rounded to an integer, with at most 60 bins.

    Args:
        sizes: int array [K], images per class.

    Returns:
        float array [bins + 1]; every size lies strictly between the first and the last edge.
    """
    low, high = int(sizes.min()), int(sizes.max())
    spread = float(np.subtract(*np.percentile(sizes, [75, 25])))
    width = max(1, round(2 * spread / len(sizes) ** (1 / 3)), -(-(high - low + 1) // 60))
    bins = -(-(high - low + 1) // width)
    edges: NDArray[np.float64] = low - 0.5 + width * np.arange(bins + 1, dtype=np.float64)
    return edges


def class_sizes_figure(sizes: NDArray[np.integer], note: str = "") -> Figure:
    """Draw Fig. 3: the sizes of the pseudo-classes at the end of training, with the mean N/K marked.

    Args:
        sizes: int array [K], images per class.
        note: printed small at the foot.
    """
    mean = float(sizes.sum() / len(sizes))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.55), dpi=DPI)
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.15, 1]})
        figure.subplots_adjust(left=0.075, right=0.97, top=0.9, bottom=0.225, wspace=0.24)

        edges = bin_edges(sizes)
        counts, _, _ = left.hist(sizes, bins=list(edges), color=BLUE, edgecolor="white", linewidth=0.4)
        top = float(np.max(counts)) * 1.22
        left.axvline(mean, color=RED, linewidth=1, linestyle=(0, (4, 2)))
        left.annotate(
            f"mean N/K = {_short(mean)}", (mean, top), (4, -2), textcoords="offset points", color=RED, va="top", size=7
        )
        left.set(xlim=(0, float(edges[-1]) * 1.06), ylim=(0, top), xlabel="images in a class", ylabel="classes")
        panel_letter(left, "a")

        ordered = np.sort(sizes)[::-1]
        ranks = np.arange(len(ordered) + 1)
        right.stairs(ordered, ranks, fill=True, color=BLUE, linewidth=0)
        right.axhline(mean, color=RED, linewidth=1, linestyle=(0, (4, 2)))
        right.set(xlim=(0, len(ordered)), ylim=(0, float(ordered[0]) * 1.22))
        right.set(xlabel="classes, the largest first", ylabel="images in a class")
        low, median, high = int(ordered[-1]), float(np.median(ordered)), int(ordered[0])
        summary = f"K = {len(sizes):,}   min {low:,}   median {_short(median)}   max {high:,}"
        right.text(1, 0.98, summary, transform=right.transAxes, ha="right", va="top", size=7)
        panel_letter(right, "b")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        foot_note(figure, note)
    return figure


def grid_figure(clusters: ClusterArrays, index: Index, note: str = "") -> Figure:
    """Draw Fig. 4: images of the pseudo-classes whose annotated labels have the lowest entropy, one row per class.

    Text beside each row describes the whole pseudo-class: its most frequent annotated class, the entropy of its
    annotated labels, its number and size. Images of other annotated classes are framed.

    Raises:
        InputError: an image position or an annotated label is outside the index, or an image cannot be read.
    """
    rows, columns = clusters.grid_images.shape
    if clusters.grid_images.min() < -1 or clusters.grid_images.max() >= len(index):
        raise InputError(
            f"{index.name}: the grid shows image {clusters.grid_images.max()}, the index has {len(index)}; "
            "the clusters were made from another index: delete them and run snakemake again"
        )
    if clusters.grid_annotated.min() < 0 or clusters.grid_annotated.max() >= len(index.classes):
        raise InputError(
            f"{index.name}: the grid names annotated class {clusters.grid_annotated.max()}, the index has "
            f"{len(index.classes)}; the clusters were made from another index: delete them and run snakemake again"
        )
    label_width, foot = 1.3, 0.3
    cell = min(_WIDEST, (WIDTH - label_width) / columns)
    height = rows * cell + foot
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        axes = figure.add_axes(
            (
                label_width / WIDTH,
                foot / height,
                min(1 - label_width / WIDTH, columns * _WIDEST / WIDTH),
                1 - foot / height,
            )
        )
        axes.set_axis_off()
        side = THUMBNAIL + GAP
        axes.set(xlim=(0, columns * side), ylim=(rows * side, 0))
        canvas = np.full((rows * side, columns * side, 3), 255, np.uint8)
        framed = False
        for row, positions in enumerate(clusters.grid_images):
            dominant = int(clusters.grid_annotated[row])
            for column, position in enumerate(positions[positions >= 0]):
                y, x = row * side + GAP // 2, column * side + GAP // 2
                canvas[y : y + THUMBNAIL, x : x + THUMBNAIL] = _thumbnail(index.file(int(position)))
                if index.labels[position] != dominant:
                    framed = True
                    axes.add_patch(
                        Rectangle((x, y), THUMBNAIL, THUMBNAIL, fill=False, edgecolor=RED, linewidth=1.4, zorder=2)
                    )
            _describe(axes, clusters, row, (row + 0.5) * side, index.classes[dominant])
        axes.imshow(canvas, extent=(0, columns * side, rows * side, 0), interpolation="none", aspect="auto", zorder=1)
        legend = "framed: not of the row's most frequent class" if framed else ""
        foot_note(figure, "   ·   ".join(part for part in (legend, note) if part))
    return figure


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write a figure as PNG and SVG, atomically, without dates or versions, so that equal figures give equal bytes."""
    with matplotlib.rc_context(STYLE):
        with atomic(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        with atomic(png) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _thumbnail(path: Path) -> NDArray[np.uint8]:
    """Read the central square of an image, uint8 [T, T, 3] with T = THUMBNAIL."""
    image: NDArray[np.uint8] = reader.center_crop(reader.read_rgb(path), THUMBNAIL, THUMBNAIL)
    return image.transpose(1, 2, 0)


def _describe(axes: Axes, clusters: ClusterArrays, row: int, y: float, dominant: str) -> None:
    size = int(clusters.class_sizes[int(clusters.grid_classes[row])])
    lines = [
        (10, _shorten(dominant), INK, "bold"),
        (0, f"entropy {clusters.grid_entropy[row]:.2f} nats", INK, "normal"),
        (-10, f"class {int(clusters.grid_classes[row])}, {size:,} images", GREY, "normal"),
    ]
    for offset, text, color, weight in lines:
        axes.annotate(
            text,
            (0, y),
            (-5, offset),
            textcoords="offset points",
            ha="right",
            va="center",
            size=6.5,
            color=color,
            weight=weight,
            annotation_clip=False,
        )


def panel_letter(axes: Axes, letter: str, rise: int = 5) -> None:
    """Print a panel's letter at its upper left, `rise` points above it."""
    axes.annotate(
        letter, (0, 1), (-26, rise), xycoords="axes fraction", textcoords="offset points", weight="bold", size=9
    )


def foot_note(figure: Figure, note: str) -> int:
    """Print a note small at the foot of a figure, broken into lines that fit; return how many there are."""
    lines = [line.strip(" ·") for line in textwrap.wrap(note, _LINE)]
    foot = 0.06 / figure.get_figheight()
    figure.text(1 - 0.05 / WIDTH, foot, "\n".join(lines), size=6, color=GREY, ha="right", va="bottom")
    return len(lines)


def _small(clusters: ClusterArrays, metrics: metrics_file.Metrics) -> str:
    """Say that Fig. 4 shows classes below `min_images`, if it does."""
    least = int(metrics.protocol.get("min_images", 0))
    large = int((clusters.class_sizes >= least).sum())
    if large >= len(clusters.grid_classes):
        return ""
    return f"classes of {least} images or more: {large}, so smaller ones are shown too"


def _shorten(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == round(number) else f"{number:.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Draw one figure. On an error, name it and exit with 2."""
    parser = stage_parser("uic_core.report.figures", __doc__)
    parser.add_argument("--figure", type=int, choices=(3, 4), required=True, help="number of the figure in the paper")
    parser.add_argument("--arrays", type=Path, required=True, help="clusters.npz")
    parser.add_argument("--metrics", type=Path, required=True, help="clusters.json")
    parser.add_argument("--index", type=Path, required=True, help="index of the training images")
    add_scale(parser)
    add_recipes(parser)
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    parser.add_argument("--svg", type=Path, required=True)
    options = parser.parse_args(arguments)
    with stage():
        metrics = read_with(options.metrics, "arrays", options.arrays, options.recipes)
        index = Index.load(options.index)
        if metrics.dataset.fingerprint != index.fingerprint:
            raise InputError(
                f"{options.metrics}: speaks of {metrics.dataset.name} {metrics.dataset.fingerprint}, but "
                f"{options.index} is {index.fingerprint}; delete {options.metrics} and run snakemake"
            )
        clusters = ClusterArrays.load(options.arrays)
        note = "demo data: generated images, not ImageNet" if options.scale == "demo" else ""
        if options.figure == 3:
            figure = class_sizes_figure(clusters.class_sizes, note)
        else:
            figure = grid_figure(clusters, index, "   ·   ".join(filter(None, (_small(clusters, metrics), note))))
        save(figure, options.out, options.svg)


if __name__ == "__main__":
    main()
