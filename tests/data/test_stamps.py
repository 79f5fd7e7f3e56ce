"""Files that change after the index or the check: every job that reads them says so first, and each remedy works."""

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.recipes import recipe as recipe_of
from uic_core import checkpoint, recipe
from uic_core.data import cache, check, index, stamps, voc
from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.evaluate import fewshot, linear_probe, voc_classification
from uic_core.models import build
from uic_core.pretrain import __main__ as pretrain
from uic_core.strict_yaml import read_yaml

Seen = Callable[[object], None]


@pytest.fixture
def data(demo_data: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy of the data sets: `root`, `yaml` (path) and `listed` (what its first stage made) of each, by name."""
    found = {}
    for name in ("imagenet", "voc07", "voc_segmentation", "miniimagenet"):
        one = demo_data.datasets.one(name)
        root = tmp_path / name
        shutil.copytree(one.section.root, root)
        one = one.model_copy(update={"section": one.section.model_copy(update={"root": str(root)})})
        file = tmp_path / "results" / "data" / f"{name}.yaml"
        recipe.save(one, file)
        found[name] = SimpleNamespace(root=root, yaml=file)
    return SimpleNamespace(**found, results=tmp_path / "results")


def list_images(data: SimpleNamespace, name: str, split: str) -> Path:
    out: Path = data.results / "index" / f"{name}_{split}.npz"
    index.main(["--dataset", str(getattr(data, name).yaml), "--split", split, "--out", str(out)])
    return out


def check_data(data: SimpleNamespace, name: str) -> Path:
    out: Path = data.results / "data" / f"{name}.checked"
    check.main(["--dataset", str(getattr(data, name).yaml), "--out", str(out)])
    return out


def other_bytes(path: Path) -> None:
    """The same size, a later time."""
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes(255 - byte for byte in content[-9:]))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize(("name", "split"), [("imagenet", "val"), ("imagenet", "train"), ("miniimagenet", "test")])
def test_fault_32_an_image_replaced_under_its_name_is_named(
    data: SimpleNamespace, name: str, split: str, seen: Seen
) -> None:
    path = list_images(data, name, split)
    listed = Index.load(path, verify=True)
    before = path.read_bytes()
    image = listed.file(3)
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 10**9))  # the same bytes, as a copy of the data set has them
    with pytest.raises(InputError) as caught:
        Index.load(path, verify=True)
    message = str(caught.value)
    assert message.startswith(f"1 of {len(listed)} files changed since {path} was made of them: {image} (written 20")
    assert f"delete {path} and make it alone: snakemake … {path};" in message
    path.unlink()
    list_images(data, name, split)
    assert path.read_bytes() == before  # so nothing that depends on it runs again
    Index.load(path, verify=True)

    shutil.copy(listed.file(2), image)  # another image, with another size
    with pytest.raises(InputError) as caught:
        Index.load(path, verify=True)
    seen(caught.value)
    assert f" bytes then, {image.stat().st_size} now)" in str(caught.value)
    image.unlink()
    with pytest.raises(InputError, match=rf"{image.name} \(is gone\)"):
        Index.load(path, verify=True)


@pytest.mark.parametrize(("name", "split"), [("imagenet", "train"), ("miniimagenet", "test")])
def test_fault_32_other_images_of_the_same_size_make_again_what_read_the_old_ones(
    data: SimpleNamespace, name: str, split: str, seen: Seen
) -> None:
    """The message's remedy: delete the index and make it. Its fingerprint is another one; of the old images the old."""
    path = list_images(data, name, split)
    first = Index.load(path)
    size = first.file(3).stat().st_size
    contents = [first.file(position).read_bytes() for position in range(len(first))]
    other = next(content for content in contents if content != contents[3] and len(content) <= size)
    changed, prints = other + b"\0" * (size - len(other)), []
    for content in (changed, changed, contents[3]):
        first.file(3).write_bytes(content)
        os.utime(first.file(3), ns=(0, len(prints)))
        with pytest.raises(InputError, match="if the new files are meant, delete it and run snakemake"):
            Index.load(path, verify=True)
        path.unlink()
        list_images(data, name, split)
        prints.append(Index.load(path, verify=True).fingerprint)
    seen(f"{first.fingerprint}, then {', '.join(prints)}")
    assert prints[0] == prints[1] != first.fingerprint == prints[2]


@pytest.mark.parametrize("name", ["voc07", "voc_segmentation"])
def test_fault_32_other_voc_images_of_the_same_size_make_again_what_read_the_old_ones(
    data: SimpleNamespace, name: str, seen: Seen
) -> None:
    """The fingerprint of VOC's files holds an image's size alone; the check looks at its bytes too."""
    one, checked = getattr(data, name), check_data(data, name)

    def images() -> list[Path]:
        if name == "voc07":
            return voc.images(one.root, ["trainval", "test"])
        return voc.segmentation_images(voc.segmentation_lists(one.root, "", "train", "val"))

    def listed() -> str:
        if name == "voc07":
            return voc.fingerprint(one.root, ["trainval", "test"])
        return voc.segmentation_fingerprint(voc.segmentation_lists(one.root, "", "train", "val"))

    prints = [stamps.noted(checked, "all")]
    assert prints == [listed()]
    first = images()[0]
    old = first.read_bytes()
    with Image.open(first) as image:
        flipped = BytesIO()
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(flipped, "JPEG", quality=5)
    changed = flipped.getvalue() + b"\0" * (len(old) - len(flipped.getvalue()))
    assert len(changed) == len(old)
    test = stamps.noted(checked, "test")
    for content in (changed, changed, old):
        first.write_bytes(content)
        os.utime(first, ns=(0, len(prints)))
        checked.unlink()
        check_data(data, name)
        prints.append(stamps.noted(checked, "all"))
        assert stamps.noted(checked, "test") == test  # of the other list, which segmentation does not name
        assert stamps.by_content(checked, "all", listed()) == prints[-1]
    seen(", then ".join(prints))
    assert prints[1] == prints[2] != prints[0] == prints[3]
    # Files that the check has not seen, as a copy on a node may be: they are fingerprinted as they are listed.
    assert stamps.by_content(checked, "all", "other") == stamps.by_content(None, "all", "other") == "other"
    checked.write_text(f"fingerprint of all: {prints[1]}\n")  # of an earlier version
    assert stamps.by_content(checked, "all", "other") == "other"
    checked.write_bytes(b"\xff")
    assert stamps.by_content(checked, "all", "other") == "other"


def test_fault_32_the_key_skips_the_comparison_and_older_results_have_none(
    data: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = list_images(data, "imagenet", "val")
    other_bytes(Index.load(path).file(0))
    with monkeypatch.context() as patch:
        patch.setenv(stamps.SWITCH, "0")
        Index.load(path, verify=True)
    stamps.beside(path).unlink()
    Index.load(path, verify=True)
    stamps.beside(path).write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(InputError, match=r"imagenet_val\.files\.npy: is damaged, or the image lists changed"):
        Index.load(path, verify=True)


@pytest.mark.parametrize("name", ["voc07", "voc_segmentation"])
@pytest.mark.parametrize("part", ["JPEGImages", "Annotations or SegmentationClass", "ImageSets"])
def test_fault_32_voc_files_changed_after_the_check_are_named(
    data: SimpleNamespace, name: str, part: str, seen: Seen
) -> None:
    one, checked = getattr(data, name), check_data(data, name)

    def files() -> list[str]:
        if name == "voc07":
            return voc.files(one.root)
        return voc.segmentation_files(voc.segmentation_lists(one.root, "", "train", "val"))

    stamps.verify(checked, files())
    path = next(Path(file) for file in reversed(files()) if any(word in file for word in part.split(" or ")))
    os.utime(path, (0, 0))
    with pytest.raises(InputError) as caught:
        stamps.verify(checked, files())
    seen(caught.value)
    assert f"since {checked} was made of them: {path} (written " in str(caught.value)
    checked.unlink()
    check_data(data, name)
    stamps.verify(checked, files())


@pytest.mark.parametrize("stage", ["pretrain", "linear_probe", "fewshot", "voc_classification_all"])
def test_fault_32_every_stage_stops_before_it_works(
    data: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    made = recipe_of(image_size=64)
    network = build(made.arch, classes=made.classes, image_size=64, sobel=made.sobel)
    checkpoint.save(tmp_path / "checkpoint.safetensors", network, made, {})
    recipe.save(made, tmp_path / "recipe.yaml")
    common = ["--run", "x", "--checkpoint", str(tmp_path / "checkpoint.safetensors"), "--out", str(tmp_path / "o.json")]
    if stage != "pretrain":
        section = read_yaml(Path("config/demo.yaml"))["evaluations"][stage]
        (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(section))
        common += ["--protocol", str(tmp_path / "protocol.yaml")]
    if stage == "voc_classification_all":
        listed = check_data(data, "voc07")
        changed = voc.image_path(data.voc07.root, voc.read_list(data.voc07.root, "test")[0])
        run = partial(voc_classification.main, [*common, "--voc", str(data.voc07.root), "--checked", str(listed)])
    elif stage == "fewshot":
        listed = list_images(data, "miniimagenet", "test")
        changed = Index.load(listed).file(0)
        run = partial(fewshot.main, [*common, "--index", str(listed)])
    else:
        train, listed = list_images(data, "imagenet", "train"), list_images(data, "imagenet", "val")
        run = partial(linear_probe.main, [*common, "--train-index", str(train), "--val-index", str(listed)])
        if stage == "pretrain":
            listed = train
            files = [
                "--recipe",
                str(tmp_path / "recipe.yaml"),
                "--train-index",
                str(train),
                "--out",
                str(tmp_path / "run"),
            ]
            run = partial(pretrain.main, files)
        changed = Index.load(listed).file(0)
    other_bytes(changed)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    assert re.match(
        rf"error: 1 of \d+ files changed since {listed} was made of them: {changed} ", capsys.readouterr().err
    )
    assert not (tmp_path / "o.json").exists()


def test_fault_59_deleted_pixels_of_the_cache_are_made_again_as_the_message_says(
    data: SimpleNamespace, tmp_path: Path, seen: Seen
) -> None:
    path = list_images(data, "imagenet", "train")
    cached = data.results / "index" / "imagenet_train_cached.npz"
    command = ["--index", str(path), "--format", "jpeg", "--side", "64", "--root", str(tmp_path / "c"), "--out"]
    cache.main([*command, str(cached)])
    before = cached.read_bytes()
    (part,) = Index.load(cached, verify=True).files()
    for spoil in (Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-5])):
        spoil(Path(part))
        with pytest.raises(InputError) as caught:
            Index.load(cached, verify=True)
        seen(caught.value)
        assert f"{part} (" in str(caught.value)
        assert str(caught.value).endswith(f"delete {cached}, then make it alone: snakemake … {cached}")
        cached.unlink()
        cache.main([*command, str(cached)])
        assert cached.read_bytes() == before
        index_again = Index.load(cached, verify=True)
        assert index_again.read_part(0, lambda width, height: (0, 0, width, height), 8)[0].dtype == np.uint8


@pytest.mark.parametrize("format", ["jpeg", "uint8"])
def test_a_cache_that_several_results_share_has_the_pixels_of_each(
    data: SimpleNamespace, tmp_path: Path, format: str, seen: Seen
) -> None:
    """Images are replaced by others of the same names and sizes, and a fresh folder of results lists them anew."""

    def cached(results: str) -> Index:
        data.results = tmp_path / results
        path = list_images(data, "imagenet", "train")
        out = path.with_name("imagenet_train_cached.npz")
        command = ["--index", str(path), "--format", format, "--side", "64", "--root", str(tmp_path / "c")]
        cache.main([*command, "--out", str(out)])
        return Index.load(out, verify=True)

    def pixels(of: Index) -> bytes:
        return of.read_part(3, lambda width, height: (0, 0, width, height), 64)[0].tobytes()

    old = cached("old")
    before, image = pixels(old), old.file(3)
    size = image.stat().st_size
    Image.new("RGB", (160, 120), "red").save(image, "JPEG", quality=5)
    image.write_bytes(image.read_bytes().ljust(size, b"\0"))
    new, again = cached("new"), cached("again")
    seen(f"{old.pixels.folder.name}, then {new.pixels.folder.name}")
    assert pixels(new) != before == pixels(old)
    assert new.fingerprint == again.fingerprint != old.fingerprint
    assert new.pixels.folder == again.pixels.folder
