"""Stage `synthetic`: makes the demo's data sets in the real layouts, so that the real code reads them.

Class k has the same outline and texture in the ImageNet-like and the VOC-like sets, so pretraining transfers. The
miniImageNet-like set has pairs of outline and texture that no other set has. A picture depends only on (seed, data
set, its number), so its bytes do not depend on the number of processes. A data set is made in a temporary folder,
which is then renamed in one step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from uic_core import recipe
from uic_core.arguments import stage_parser
from uic_core.data import shapes, voc
from uic_core.data.dataset import Dataset, ImageFolder, MiniImageNet, Voc07, VocSegmentation
from uic_core.data.palette import palette
from uic_core.errors import InputError, stage
from uic_core.files import DAMAGED, atomic_folder, write_json
from uic_core.run import cpus

MANIFEST = "generated.json"
"""Settings, and every file with its size. It is written last: a folder with it is complete and was made here."""

_VERSION = 1  # raise this if pictures change: old data sets are then made again
_SCENE = (160, 120)
# With objects from half the shorter side up and a habitat of 0.1, most random crops show too little of the class:
# UIC does not start from random labels in the demo's few epochs (NMI t/labels 0.07 after 17, against 0.14 after 12).
_FILL = (0.7, 1.0)
_HABITAT = 0.45
_DIFFICULT = 0.22  # share of the objects that may be difficult; about a tenth of all
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """One image to draw: class numbers of its objects, the seed, and the path of its files."""

    path: str
    seed: tuple[int, ...]
    numbers: tuple[int, ...]
    variant: str = "plain"


@dataclass
class Plan:
    """All that a data set will contain, known before the first picture is drawn."""

    home: Path
    settings: dict[str, Any]
    draw: Callable[[Picture], dict[str, bytes]]
    pictures: list[Picture] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


def plan(dataset: Dataset) -> Plan:
    """Plan a data set: every picture, and the lists that need no picture.

    Raises:
        InputError: more classes than distinguishable shapes, or a path in a list name.
    """
    name, seed, section = dataset.name, dataset.seed, dataset.section
    settings = {
        "version": _VERSION,
        "dataset": name,
        "seed": seed,
        **section.model_dump(exclude={"root", "sbd", "source"}),
    }
    home = Path(section.root) / {"voc07": "VOC2007", "voc_segmentation": "VOC2012"}.get(name, "")
    drawing = Plan(home, settings, {"voc07": _draw_voc07, "voc_segmentation": _draw_segmentation}.get(name, _draw))
    _LAYOUTS[type(section)](drawing, section, seed)
    return drawing


def generate(dataset: Dataset, processes: int = 1) -> bool:
    """Make a data set unless it is already complete.

    Returns:
        Whether anything was made.

    Raises:
        InputError: the folder has files that were not made here; they are not touched.
    """
    drawing = plan(dataset)
    home = drawing.home
    if _stands(drawing):
        return False
    with atomic_folder(home) as partial:  # _stands checked that every file in `home` was made here
        _fill(partial, drawing, processes)
    return True


def main(arguments: list[str] | None = None) -> None:
    """Generate a data set unless it is already complete."""
    parser = stage_parser("uic_core.data.synthetic", main.__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="YAML of a uic_core.data.dataset.Dataset")
    parser.add_argument("--threads", type=int, default=1, help="processes that draw")
    options = parser.parse_args(arguments)
    with stage():
        dataset = recipe.load(Dataset, options.dataset)
        made = generate(dataset, options.threads)
        print(f"{plan(dataset).home}: {'made' if made else 'already complete'}")


def _stands(drawing: Plan) -> bool:
    """Return whether the data set is complete with these settings. Refuse a folder with files not made here."""
    home = drawing.home
    if not home.exists():
        return False
    found = {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.is_symlink() or path.is_file()}
    manifest_path = found.pop(MANIFEST, None)
    if manifest_path is None:
        if found:
            raise InputError(
                f"{home}: holds files that were not generated here (no {MANIFEST}); to use them set datasets.generated "
                f"to false, else give data set {drawing.settings['dataset']} another root"
            )
        return False
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        settings, sizes = manifest["settings"], dict(manifest["files"])
    except DAMAGED as error:
        raise InputError(f"{manifest_path}: is damaged ({error!r}); move {home} away and run again") from error
    strangers = sorted(set(found) - set(sizes))
    if settings == drawing.settings and not strangers:
        return all(name in found and found[name].stat().st_size == size for name, size in sizes.items())
    if strangers:
        raise InputError(
            f"{home}: {len(strangers)} files in it were not generated here, the first is {strangers[0]}; move them away"
        )
    return False


def _fill(folder: Path, drawing: Plan, processes: int) -> None:
    sizes: dict[str, int] = {}
    for name, content in _files(drawing, processes):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sizes[name] = len(content)
    write_json(folder / MANIFEST, {"settings": drawing.settings, "files": dict(sorted(sizes.items()))})


def _files(drawing: Plan, processes: int) -> Iterator[tuple[str, bytes]]:
    for name, text in drawing.texts.items():
        yield name, text.encode()
    if processes == 1:
        for picture in drawing.pictures:
            yield from drawing.draw(picture).items()
        return
    with cpus.pool(processes) as pool:
        for files in pool.map(drawing.draw, drawing.pictures, chunksize=16):
            yield from files.items()


# ---- layouts ---------------------------------------------------------------------------------------------------


def _folder(drawing: Plan, section: ImageFolder, seed: int) -> None:
    if not section.classes:
        raise InputError(f"{section.root}: generated images have class folders; write 2 or more for classes")
    _check_classes(f"{section.root}: classes", section.classes)
    for split, count in (("train", section.train_images), ("val", section.val_images)):
        for number in range(count):
            label = number % section.classes
            name = f"{_wnid(label)}_{number}" if split == "train" else f"ILSVRC2012_val_{number + 1:08d}"
            # As in the real set: some images (of every class) are grey, one is CMYK, one is stored rotated.
            variant = {3: "cmyk", 5: "turned"}.get(number) or ("grey" if number % 37 == 7 else "plain")
            path, own = f"{split}/{_wnid(label)}/{name}.JPEG", (seed, 0, split == "val", number)
            drawing.pictures.append(Picture(path, own, (label,), variant))


def _mini(drawing: Plan, section: MiniImageNet, seed: int) -> None:
    first = len(voc.CLASSES)  # after the classes shared by the ImageNet-like and VOC-like sets
    counts = {"train": section.train_classes, "val": section.val_classes, "test": section.test_classes}
    _check_classes("datasets.miniimagenet: all classes", first + sum(counts.values()))
    for split, classes in counts.items():
        rows = ["filename,label"]
        for label in range(first, first + classes):
            for number in range(section.images_per_class):
                name = f"{_wnid(label)}{number + 1:08d}.jpg"
                rows.append(f"{name},{_wnid(label)}")
                drawing.pictures.append(Picture(f"images/{name}", (seed, 1, label, number), (label,), "small"))
        first += classes
        drawing.texts[f"{split}.csv"] = "\n".join(rows) + "\n"


def _voc07(drawing: Plan, section: Voc07, seed: int) -> None:
    number = 0
    for split, count in (("trainval", section.trainval_images), ("test", section.test_images)):
        ids = []
        for place in range(count):
            number += 1
            ids.append(f"{number:06d}")
            numbers = _scene_classes(seed, 2, number, place)
            drawing.pictures.append(Picture(ids[-1], (seed, 2, number), numbers))
        drawing.texts[f"ImageSets/Main/{split}.txt"] = "\n".join(ids) + "\n"
        scenes = [_scene(picture) for picture in drawing.pictures[-count:]]
        for label, name in enumerate(voc.CLASSES):
            lines = [f"{image} {_presence(scene, label):2d}" for image, scene in zip(ids, scenes, strict=True)]
            drawing.texts[f"ImageSets/Main/{name}_{split}.txt"] = "\n".join(lines) + "\n"


def _segmentation(drawing: Plan, section: VocSegmentation, seed: int) -> None:
    if section.sbd:
        raise InputError('datasets.voc_segmentation.sbd: is not generated; write "" to train on VOC2012')
    number = 0
    lists = {
        "train_list": (section.train_list, section.train_images),
        "val_list": (section.val_list, section.val_images),
    }
    for key, (split, count) in lists.items():
        voc.check_id(split, f"datasets.voc_segmentation.{key}")
        ids = []
        for place in range(count):
            number += 1
            ids.append(f"2012_{number:06d}")
            numbers = _scene_classes(seed, 3, number, place)
            drawing.pictures.append(Picture(ids[-1], (seed, 3, number), numbers))
        drawing.texts[f"ImageSets/Segmentation/{split}.txt"] = "\n".join(ids) + "\n"


_LAYOUTS: dict[type[recipe.Strict], Callable[..., None]] = {
    ImageFolder: _folder,
    Voc07: _voc07,
    VocSegmentation: _segmentation,
    MiniImageNet: _mini,
}


def _check_classes(key: str, classes: int) -> None:
    if classes > shapes.KINDS:
        raise InputError(f"{key}: {classes}, but generated images come in at most {shapes.KINDS} classes; lower it")


def _wnid(label: int) -> str:
    return f"n{label + 1:08d}"


def _scene_classes(seed: int, dataset: int, number: int, place: int) -> tuple[int, ...]:
    """Return one to three classes; the first one cycles through all classes, so each split shows every class."""
    random = np.random.default_rng((seed, dataset, number, 1))
    others = random.integers(0, len(voc.CLASSES), random.choice(3, p=(0.4, 0.35, 0.25)))
    return (place % len(voc.CLASSES), *others.tolist())


# ---- drawing ---------------------------------------------------------------------------------------------------


def _draw(picture: Picture) -> dict[str, bytes]:
    """Draw one object in an image of random size (miniImageNet: 84×84); grey, CMYK or rotated as `variant` says."""
    random = np.random.default_rng(picture.seed)
    width, height = (84, 84) if picture.variant == "small" else random.integers(72, 129, 2).tolist()
    radius = min(width, height) * random.uniform(*_FILL) / 2
    x, y = (random.uniform(0.9 * radius, side - 0.9 * radius) for side in (width, height))
    (label,) = picture.numbers
    pixels, _ = shapes.draw(random, width, height, [shapes.Thing(label, x, y, radius)], _HABITAT)
    image = Image.fromarray(pixels)
    if random.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.8)))
    quality = int(random.integers(85, 96))
    if picture.variant == "grey":
        return {picture.path: _jpeg(image.convert("L"), quality)}
    if picture.variant == "cmyk":
        return {picture.path: _jpeg(image.convert("CMYK"), quality)}
    if picture.variant == "turned":
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = 6  # viewers rotate the image clockwise
        return {picture.path: _jpeg(image.transpose(Image.Transpose.ROTATE_90), quality, exif)}
    return {picture.path: _jpeg(image, quality)}


def _scene(picture: Picture) -> list[tuple[shapes.Thing, bool]]:
    """Return the things of a scene and whether each is difficult (small and faint). The first one never is.

    A thing is left out if no place is found where it hardly touches the others.
    """
    random = np.random.default_rng((*picture.seed, 2))
    scene: list[tuple[shapes.Thing, bool]] = []
    for label in picture.numbers:
        difficult = bool(scene) and random.random() < _DIFFICULT
        for _ in range(30):
            radius = random.uniform(9, 14) if difficult else random.uniform(24, 50)
            # Up to a quarter of the radius may lie outside: truncated objects, as in VOC.
            x, y = (random.uniform(0.75 * radius, side - 0.75 * radius) for side in _SCENE)
            if all(np.hypot(x - other.x, y - other.y) > 0.85 * (radius + other.radius) for other, _ in scene):
                scene.append((shapes.Thing(label, x, y, radius, 0.5 if difficult else 1.0), difficult))
                break
    return scene


def _presence(scene: list[tuple[shapes.Thing, bool]], label: int) -> int:
    """Return an image's value in VOC's class lists: 1 shown, 0 only as difficult objects, -1 not shown."""
    seen = [difficult for thing, difficult in scene if thing.number == label]
    return -1 if not seen else 0 if all(seen) else 1


def _draw_scene(picture: Picture) -> tuple[bytes, NDArray[np.bool_]]:
    """Return the JPEG, and bool [n, height, width]: the visible part of each thing."""
    random = np.random.default_rng(picture.seed)
    pixels, covers = shapes.draw(random, *_SCENE, [thing for thing, _ in _scene(picture)])
    for number in range(len(covers)):
        covers[number] &= ~covers[number + 1 :].any(axis=0)
    return _jpeg(Image.fromarray(pixels), int(random.integers(85, 96))), covers


def _draw_voc07(picture: Picture) -> dict[str, bytes]:
    jpeg, seen = _draw_scene(picture)
    width, height = _SCENE
    fields = [
        *("<folder>VOC2007</folder>", f"<filename>{picture.path}.jpg</filename>", "<source>"),
        *("\t<database>generated by uic_core.data.synthetic</database>", "</source>", "<size>"),
        *(f"\t<width>{width}</width>", f"\t<height>{height}</height>", "\t<depth>3</depth>", "</size>"),
        "<segmented>0</segmented>",
    ]
    for (thing, difficult), mask in zip(_scene(picture), seen, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = {"xmin": columns[0], "ymin": rows[0], "xmax": columns[-1], "ymax": rows[-1]}
        truncated = any(
            not thing.radius <= place <= side - thing.radius for place, side in ((thing.x, width), (thing.y, height))
        )
        fields += [
            *("<object>", f"\t<name>{voc.CLASSES[thing.number]}</name>", "\t<pose>Unspecified</pose>"),
            *(f"\t<truncated>{truncated:d}</truncated>", f"\t<difficult>{difficult:d}</difficult>", "\t<bndbox>"),
            *(f"\t\t<{edge}>{place + 1}</{edge}>" for edge, place in box.items()),
            *("\t</bndbox>", "</object>"),
        ]
    xml = "\n".join(["<annotation>", *(f"\t{line}" for line in fields), "</annotation>"]) + "\n"
    return {f"JPEGImages/{picture.path}.jpg": jpeg, f"Annotations/{picture.path}.xml": xml.encode()}


def _draw_segmentation(picture: Picture) -> dict[str, bytes]:
    jpeg, seen = _draw_scene(picture)
    width, height = _SCENE
    mask = np.zeros((height, width), np.uint8)
    for (thing, _), visible in zip(_scene(picture), seen, strict=True):
        mask[visible] = 1 + thing.number
    # VOC's void band around every object: where a 3×3 window holds more than one value.
    grown = Image.fromarray(mask)
    edges = np.asarray(grown.filter(ImageFilter.MaxFilter(3))) != np.asarray(grown.filter(ImageFilter.MinFilter(3)))
    mask[edges] = voc.IGNORED
    image = Image.fromarray(mask)
    image.putpalette(palette().ravel().tolist())
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return {f"JPEGImages/{picture.path}.jpg": jpeg, f"SegmentationClass/{picture.path}.png": buffer.getvalue()}


def _jpeg(image: Image.Image, quality: int, exif: Image.Exif | None = None) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality, **({} if exif is None else {"exif": exif}))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
