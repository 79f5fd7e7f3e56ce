"""`make smoke`: a config with a few images and steps of everything, on a config's own data sets and folders.

Run on a cluster, it finds within minutes what would otherwise end the third day: environments, GPUs, paths,
permissions, disk space, time limits. The data sets are links to a few of the real files, in the same layouts. Jobs
request what the full config requests. Imports torch, to count the disk space.
"""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from uic_core import recipe
from uic_core.arguments import stage_parser
from uic_core.config import CONFIG_HELP, Config, read
from uic_core.data import voc
from uic_core.data.dataset import Datasets, ImageFolder, MiniImageNet, Voc07, VocSegmentation
from uic_core.data.index import build_miniimagenet
from uic_core.data.listing import scan
from uic_core.errors import InputError, stage
from uic_core.evaluations import Evaluation
from uic_core.files import write_text
from uic_core.methods import METHODS
from uic_core.models import ARCHS
from uic_core.overview.plan import everything
from uic_core.recipe import External, Recipe, Strict, Training

CLASSES, TRAIN, VAL = 4, 12, 4
"""Class folders, and images of each, at most; more to learn from where nearest neighbours are as many."""
SEGMENTED = (6, 4)
"""Images of the training and of the test list of segmentation."""
_HEAVY = 10.0  # GFLOP of a training image from which a run takes a third of the images; AlexNet has 7


def smaller(config: Config, folder: Path) -> Config:
    """Return the config with a few images and steps of everything; all that is made goes into `folder`.

    Further seeds are left out. Call `link` to make the data sets, unless they are generated.

    Raises:
        InputError: VOC2007's lists or annotations cannot be read.
    """
    datasets = _datasets(config, folder / "datasets")
    evaluations: dict[str, Any] = {
        name: section.model_copy(update=section.few()) if isinstance(section, Evaluation) else section
        for name, section in config.evaluations.present.items()
    }
    if proposals := config.evaluations.proposals:
        # Published ones are of the whole lists.
        evaluations["proposals"] = proposals.model_copy(update={"source": "", "max_boxes": 50})
    if knn := config.evaluations.knn:
        few = evaluations["knn"]
        there = datasets.folders[few.data].train_images
        kept = [k for k in knn.neighbours if k <= there] or [there]  # the tables name them
        evaluations["knn"] = few.model_copy(update={"neighbours": kept})
    small = {
        "scale": "demo",
        "results": str(folder),
        "datasets": datasets,
        "runs": {name: _run(config.runs[name], datasets) for name in config.named},
        "seeds": {},
        "evaluations": config.evaluations.model_copy(update=evaluations),
    }
    return config.model_copy(update=small)


def link(config: Config, small: Config) -> None:
    """Make the small config's data sets: links to a few of the files of the full config's.

    Raises:
        InputError: a folder, list or file is not there or cannot be read; names the config key.
    """
    for name in config.datasets.names:
        full, few = config.datasets.one(name), small.datasets.one(name)
        if isinstance(few.section, ImageFolder):
            shutil.rmtree(few.section.root, ignore_errors=True)  # links of an earlier call, maybe of other classes
        try:
            for target, source in _LINKS[type(full.section)](full.section, few.section):
                if isinstance(source, str):
                    # Written again, the same list would look changed to the jobs (uic_core/data/stamps.py).
                    if not target.is_file() or target.read_text(encoding="utf-8") != source:
                        write_text(target, source)
                else:
                    _link(target, source)
        except (InputError, OSError) as error:
            raise InputError(f"{full.key}: {error}; make check-data checks the whole data set") from None


def demand_space(config: Config) -> None:
    """Refuse a disk without room for what the full config writes.

    Raises:
        InputError: names the config key, the space that is needed and that there is.
    """
    jobs = everything(config).values()
    cached = sum(job.bytes for job in jobs if job.rule == "cache")
    needed = {"results": (config.results, sum(job.bytes for job in jobs) - cached)}
    if cached:
        needed["datasets.cache.root"] = (config.datasets.cache.root, cached)
    for key, (folder, size) in needed.items():
        path = Path(folder).absolute()
        there = next(each for each in (path, *path.parents) if each.exists())
        free = shutil.disk_usage(there).free
        if size > free:
            raise InputError(
                f"{key}: {folder}: all runs and evaluations write {size / 1e9:.1f} GB, and its disk has "
                f"{free / 1e9:.1f} GB free; name a folder on a larger disk, or make room"
            )


def _datasets(config: Config, folder: Path) -> Datasets:
    """Return the sections of the small data sets, one folder each."""
    data, fewshot, knn = config.datasets, config.evaluations.fewshot, config.evaluations.knn
    folders = {}
    for name, each in data.folders.items():
        classes = min(CLASSES, each.classes)
        train, val = (images // (each.classes or CLASSES) for images in (each.train_images, each.val_images))
        voting = knn.neighbours[-1] if knn and knn.data == name else 0
        wanted = max(TRAIN, math.ceil(voting / (classes or CLASSES)))
        changes = {
            "root": str(folder / name), "classes": classes, "train_images": min(wanted, train) * (classes or CLASSES),
            "val_images": min(VAL, val) * classes,
        }  # fmt: skip
        folders[name] = each.model_copy(update=changes)
    changed: dict[str, Any] = {
        "folders": folders, "cache": data.cache.model_copy(update={"root": str(folder / "cache")}),
    }  # fmt: skip
    if data.voc_segmentation:
        segmentation: dict[str, Any] = {"root": str(folder / "voc_segmentation")}
        segmentation |= zip(("train_images", "val_images"), SEGMENTED, strict=True)
        if data.voc_segmentation.sbd:
            segmentation["sbd"] = str(folder / "sbd")
        changed["voc_segmentation"] = data.voc_segmentation.model_copy(update=segmentation)
    if voc07 := data.voc07:
        listed = dict.fromkeys(("trainval", "test"), len(voc.CLASSES))
        if not data.generated:
            listed = {split: len(_covering(voc07, split)) for split in listed}
        counts = {f"{split}_images": count for split, count in listed.items()}
        changed["voc07"] = voc07.model_copy(update={"root": str(folder / "voc07")} | counts)
    if data.miniimagenet:
        ways, images = (fewshot.ways, fewshot.shots + fewshot.queries) if fewshot else (5, 20)
        mini = {
            "root": str(folder / "miniimagenet"),
            "train_classes": min(2, data.miniimagenet.train_classes), "val_classes": 1,
            "test_classes": max(5, ways), "images_per_class": max(20, images),
        }  # fmt: skip
        changed["miniimagenet"] = data.miniimagenet.model_copy(update=mini)
    return data.model_copy(update=changed)


def _run(run: Recipe | External, datasets: Datasets) -> Recipe | External:
    """Return a run with few images, and no more pseudo-classes than its data set has classes."""
    if isinstance(run, External):
        return run
    changes: dict[str, Any] = {"classes": min(CLASSES, run.classes)} if METHODS[run.method].pseudo_classes else {}
    if isinstance(run, Training):
        images = CLASSES * TRAIN // (3 if ARCHS[run.arch].training_gflop > _HEAVY else 1)
        there = datasets.folders[run.data].train_images
        changes |= {"images": images if images < there else 0, "batch_size": 16, "epochs": 2}
        if hasattr(run, "labels_from"):
            changes["labels_from"] = None  # there is no later epoch
    return run.model_copy(update=changes)


Source = Path | str
"""What a file of a small data set is: a link to a file or folder, or a list of its own."""


def _folder(full: ImageFolder, few: ImageFolder) -> Iterable[tuple[Path, Source]]:
    root = Path(full.root)
    wanted = {"train": few.train_images // (few.classes or 1), "val": few.val_images // (few.classes or 1)}
    wanted = {split: images for split, images in wanted.items() if images}

    def files(split: str, label: str) -> list[str]:
        return scan(root / split / label)[1][: wanted[split]]

    labels: Iterable[str] = [""]  # data without classes has its images in the split's folder itself
    if few.classes:
        named = sorted(entry.name for entry in os.scandir(root / "train") if entry.is_dir())
        filled = (each for each in named if all(len(files(split, each)) == wanted[split] for split in wanted))
        labels = islice(filled, few.classes)
    for label in labels:
        for split in wanted:
            for name in files(split, label):
                yield Path(few.root, split, label, name), root / split / label / name


def _voc07(full: Voc07, few: Voc07) -> Iterable[tuple[Path, Source]]:
    root, own = Path(full.root), Path(few.root)
    for name in ("JPEGImages", "Annotations"):
        yield own / "VOC2007" / name, root / "VOC2007" / name
    for split in ("trainval", "test"):
        yield voc.list_path(own, split), _lines(_covering(full, split))


def _segmentation(full: VocSegmentation, few: VocSegmentation) -> Iterable[tuple[Path, Source]]:
    both = [voc.segmentation_lists(Path(each.root), each.sbd, each.train_list, each.val_list) for each in (full, few)]
    for there, here, images in zip(*both, SEGMENTED, strict=True):
        yield here.images, there.images
        yield here.masks, there.masks
        yield here.path, _lines(there.ids()[:images])


def _miniimagenet(full: MiniImageNet, few: MiniImageNet) -> Iterable[tuple[Path, Source]]:
    yield Path(few.root, "images"), Path(full.root, "images")
    for split in ("train", "val", "test"):
        index = build_miniimagenet(Path(full.root), split)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["filename", "label"])
        for label in range(getattr(few, f"{split}_classes")):
            shown = index.paths[index.labels == label][: few.images_per_class]
            writer.writerows([Path(path).name, index.classes[label]] for path in shown.tolist())
        yield Path(few.root, f"{split}.csv"), table.getvalue()


_LINKS: dict[type[Strict], Callable[..., Iterable[tuple[Path, Source]]]] = {
    ImageFolder: _folder,
    Voc07: _voc07,
    VocSegmentation: _segmentation,
    MiniImageNet: _miniimagenet,
}


def _covering(section: Voc07, split: str) -> list[str]:
    """Return the first images of a VOC2007 split that together show every class."""
    root, chosen = Path(section.root), []
    missing = set(range(len(voc.CLASSES)))
    try:
        for image in voc.read_list(root, split):
            annotation = voc.read_annotation(voc.annotation_path(root, image))
            shown = set(annotation.labels[~annotation.difficult].tolist())
            if missing & shown:
                chosen.append(image)
                missing -= shown
            if not missing:
                break
    except InputError as error:
        raise InputError(f"datasets.voc07.root: {error}") from None
    return chosen


def _lines(ids: Iterable[str]) -> str:
    return "".join(f"{image}\n" for image in ids)


def _link(target: Path, source: Path) -> None:
    """Link to a file or folder that exists and can be read; an earlier link is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.absolute()
    if source.is_dir():
        next(os.scandir(source), None)
    else:
        source.open("rb").close()
    if target.is_symlink():
        target.unlink()
    target.symlink_to(source)


def main(arguments: list[str] | None = None) -> None:
    """Make the small config and its data sets in <results>/smoke; print the path of the config."""
    parser = stage_parser("uic_core.overview.smoke", __doc__)
    parser.add_argument("--config", type=Path, nargs="+", required=True, help=CONFIG_HELP)
    options = parser.parse_args(arguments)
    with stage():
        config = read(options.config)
        demand_space(config)
        folder = Path(config.results, "smoke")
        small = smaller(config, folder)
        if not config.datasets.generated:
            link(config, small)
        recipe.save(small, folder / "config.yaml")
        print(folder / "config.yaml")


if __name__ == "__main__":
    main()
