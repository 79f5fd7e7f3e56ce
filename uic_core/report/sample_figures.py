"""Stage `sample_figures` (rules fig_detection, fig_segmentation): sample images with what each run finds in them.

One row per image, one column per run, as PNG and SVG. Made from the samples that the stages `detection` and
`segmentation` saved for six test images. The same inputs give the same bytes. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from uic_core.arguments import stage_parser
from uic_core.data import reader
from uic_core.data.boxes import MATCH, overlaps
from uic_core.data.palette import palette
from uic_core.errors import InputError, stage
from uic_core.evaluations import BY_CLASS
from uic_core.report.arguments import add_recipes, add_scale
from uic_core.report.cells import COMPUTED, pair, shown_runs
from uic_core.report.figures import BLUE, DPI, GREY, INK, RED, STYLE, WIDTH, save
from uic_core.report.origin import read_with
from uic_core.samples import Detected, Kind, Samples, Segmented, load

SCORE, BOXES = 0.3, 5
"""Least score of a drawn box, and the largest number of drawn boxes per image."""

_IGNORED = 255
_LEFT, _TOP, _GAP, _LINE = 0.16, 0.2, 0.04, 0.13  # inches
_TALLEST = 1.2  # height ÷ width of a cell
_LEGEND_COLUMNS = 8


def read(
    paths: Sequence[Path], metrics: Sequence[Path], recipes: Mapping[str, str], kind: type[Kind]
) -> list[Samples[Kind]]:
    """Read the samples of every run.

    Args:
        metrics: for each file the metrics JSON that was written with it.
        recipes: run → hash of its recipe in the config.

    Raises:
        InputError: from uic_core.samples.load and origin.read_with; or two files have the same run or different images.
    """
    for path, beside in zip(metrics, paths, strict=True):
        read_with(path, "samples", beside, recipes)
    every = [load(path, kind) for path in paths]
    for path, one in zip(paths, every, strict=True):
        if (one.ids, one.fingerprint, one.classes) != (every[0].ids, every[0].fingerprint, every[0].classes):
            raise InputError(
                f"{path}: shows other images than {paths[0]}; delete the older file and run snakemake again"
            )
    if len({one.run for one in every}) < len(every):
        raise InputError(f"{', '.join(map(str, paths))}: two of them are of one run; give each once")
    return every


def detection_figure(every: Sequence[Samples[Detected]], labels: dict[str, str], note: str = "") -> Figure:
    """Draw the annotated objects, and beside them each run's detections.

    Args:
        every: samples of the same images, from `read`.
        labels: run → label, in display order; runs without samples are omitted.
        note: printed small at the foot.

    Raises:
        InputError: an image cannot be read.
    """
    ordered = _ordered(every, labels)
    figure, cells = _page(every[0], ["Annotated", *(labels[one.run] for one in ordered)], 2 * _LINE)
    with matplotlib.rc_context(STYLE):
        for row, truth in enumerate(every[0].images):
            classes = every[0].classes
            image = _image(truth.path)
            for axes in cells[row]:
                _show(axes, image)
            for box, label, difficult in zip(truth.truth_boxes, truth.truth_labels, truth.truth_difficult, strict=True):
                _box(cells[row][0], box, classes[label], INK, dashed=bool(difficult))
            for axes, one in zip(cells[row][1:], ordered, strict=True):
                _found(axes, one.images[row], classes)
        _foot(
            figure,
            [
                f"blue: overlaps an annotated object of its class by IoU > {MATCH:g}; red: does not; "
                f"the {BOXES} best boxes of score ≥ {SCORE:g}; dashed: difficult, not counted",
                note,
            ],
        )
    return figure


def segmentation_figure(every: Sequence[Samples[Segmented]], labels: dict[str, str], note: str = "") -> Figure:
    """Draw each image, its annotated mask and each run's mask; arguments and errors as for `detection_figure`."""
    ordered = _ordered(every, labels)
    masks = [each.truth for each in every[0].images] + [each.mask for one in ordered for each in one.images]
    present = sorted({int(value) for mask in masks for value in np.unique(mask)} - {0, _IGNORED})
    lines = -(-len(present) // _LEGEND_COLUMNS)
    foot = (lines + 2) * _LINE
    figure, cells = _page(every[0], ["Image", "Annotated", *(labels[one.run] for one in ordered)], foot)
    colours = palette()
    with matplotlib.rc_context(STYLE):
        for row, truth in enumerate(every[0].images):
            image = _image(truth.path)
            pixels = np.asarray(image)
            shown = [
                pixels,
                _painted(pixels, truth.truth),
                *(_painted(pixels, one.images[row].mask) for one in ordered),
            ]
            for axes, each in zip(cells[row], shown, strict=True):
                _show(axes, Image.fromarray(each))
        patches = [Patch(color=colours[value] / 255, label=every[0].classes[value]) for value in present]
        figure.legend(
            handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.9 * _LINE / figure.get_figheight()),
            ncols=_LEGEND_COLUMNS, frameon=False, fontsize=6, handlelength=0.9, handleheight=0.9, columnspacing=1.2,
            borderpad=0, labelspacing=0.4, handletextpad=0.4,
        )  # fmt: skip
        _foot(figure, ["grey: background; white: not counted", note])
    return figure


def _ordered(every: Sequence[Samples[Kind]], labels: dict[str, str]) -> list[Samples[Kind]]:
    of = {one.run: one for one in every}
    return [of[run] for run in labels if run in of]


def _page(samples: Samples[Kind], heads: Sequence[str], foot: float) -> tuple[Figure, list[list[Axes]]]:
    """Create an empty figure with a row per image and a column per head; images set the heights of the rows."""
    with matplotlib.rc_context(STYLE):
        cell = (WIDTH - _LEFT) / len(heads)
        shapes = [_image(each.path).size for each in samples.images]
        heights = [(cell - _GAP) * min(_TALLEST, high / wide) for wide, high in shapes]
        total = _TOP + sum(heights) + len(heights) * _GAP + foot
        figure = Figure(figsize=(WIDTH, total), dpi=DPI)
        rows, y = [], total - _TOP
        for number, height in enumerate(heights):
            y -= height
            row = []
            for column, head in enumerate(heads):
                place = ((_LEFT + column * cell) / WIDTH, y / total, (cell - _GAP) / WIDTH, height / total)
                axes = figure.add_axes(place)
                axes.set_axis_off()
                if not number:
                    axes.set_title(head, pad=3, size=6.5, weight="bold")
                row.append(axes)
            middle = (y + height / 2) / total
            figure.text(
                0.08 / WIDTH, middle, samples.ids[number], rotation=90, ha="center", va="center", size=5, color=GREY
            )
            rows.append(row)
            y -= _GAP
    return figure, rows


def _found(axes: Axes, image: Detected, classes: Sequence[str]) -> None:
    """Draw the best boxes of one image; if none reaches SCORE, print the best score."""
    chosen = np.flatnonzero(image.scores >= SCORE)[:BOXES]
    matches = overlaps(image.boxes, image.truth_boxes) > MATCH
    matches &= image.labels[:, None] == image.truth_labels[None]
    for number in chosen[::-1]:  # the best one on top
        text = f"{classes[image.labels[number]]} {f'{image.scores[number]:.2f}'.lstrip('0')}"
        _box(axes, image.boxes[number], text, BLUE if matches[number].any() else RED)
    if not len(chosen):
        best = f"; best {image.scores.max():.2f}" if len(image.scores) else ""
        axes.text(
            0.5, 0.03, f"no score ≥ {SCORE:g}{best}", transform=axes.transAxes, ha="center", va="bottom", size=5,
            color="white", path_effects=[withStroke(linewidth=1.2, foreground=INK)],
        )  # fmt: skip


def _box(axes: Axes, box: NDArray[np.floating], text: str, colour: str, *, dashed: bool = False) -> None:
    left, top, right, bottom = (float(edge) for edge in box)
    axes.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, edgecolor=colour, linewidth=1.1,
            linestyle=(0, (2, 1)) if dashed else "solid", path_effects=[withStroke(linewidth=2, foreground="white")],
        )
    )  # fmt: skip
    axes.annotate(
        text, (max(left, 0), max(top, 0)), (1.5, -1.5), textcoords="offset points", size=4.5, color="white", va="top",
        clip_on=True, bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.7, "alpha": 0.9},
    )  # fmt: skip


def _painted(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint the image grey, objects in their class's colour, ignored pixels white: uint8 [H, W, 3]."""
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    whole = np.where((mask == 0)[..., None], 0.45 * grey + 140, 0.4 * grey + 0.6 * palette()[mask])
    whole[mask == _IGNORED] = 255
    return np.asarray(np.clip(whole, 0, 255), np.uint8)


def _image(path: str) -> Image.Image:
    return reader.read_rgb(Path(path))


def _show(axes: Axes, image: Image.Image) -> None:
    """Show an image at its cell's resolution; axes coordinates remain the image's own pixels."""
    width = axes.get_window_extent().width
    shown = image.resize((round(width), round(width * image.height / image.width)), Image.Resampling.BICUBIC)
    axes.imshow(shown, extent=(-0.5, image.width - 0.5, image.height - 0.5, -0.5))


def _foot(figure: Figure, lines: Sequence[str]) -> None:
    text = "\n".join(line for line in lines if line)
    figure.text(1 - 0.05 / WIDTH, 0.04 / figure.get_figheight(), text, size=5.5, color=GREY, ha="right", va="bottom")


def main(arguments: list[str] | None = None) -> None:
    """Draw one figure. On an error, name it and exit with 2."""
    parser = stage_parser("uic_core.report.sample_figures", __doc__)
    parser.add_argument("--task", choices=tuple(BY_CLASS), required=True)
    parser.add_argument("--samples", type=Path, nargs="+", required=True, help="<task>_samples.npz of every run")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="<task>.json of the same runs")
    add_recipes(parser)
    parser.add_argument("--tables", type=Path, required=True, help="config/tables.yaml: what the runs are called")
    parser.add_argument("--computed", type=pair, nargs="*", default=[], help=COMPUTED)
    add_scale(parser)
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    parser.add_argument("--svg", type=Path, required=True)
    options = parser.parse_args(arguments)
    with stage():
        note = "demo data: generated scenes, not PASCAL VOC" if options.scale == "demo" else ""
        labels = shown_runs(options.tables, options.task, options.computed)
        given = options.samples, options.metrics, options.recipes
        if BY_CLASS[options.task].samples.kind == "boxes":
            figure = detection_figure(read(*given, Detected), labels, note)
        else:
            figure = segmentation_figure(read(*given, Segmented), labels, note)
        save(figure, options.out, options.svg)


if __name__ == "__main__":
    main()
