"""What results record of themselves, beside a config (tests/workflow/test_changing.py has what follows from it)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.small_dag import small_config
from tests.workflow import stand_in
from uic_core import recipe
from uic_core.config import Config, validate
from uic_core.data import cache, index, synthetic
from uic_core.overview.recorded import difference

KINDS = ("runs/*/*.safetensors", "runs/*/recipe.yaml", "protocols/*", "data/*.yaml", "proposals/*", "metrics/*/*.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config whose results are finished."""
    folder = tmp_path_factory.mktemp("finished")
    stand_in.make(validate(small_config(), "small.yaml"), folder)
    return folder


def changed(section: str, key: str, value: object) -> Config:
    config = small_config()
    inner = config
    for part in section.split("."):
        inner = inner[part]
    inner[key] = value
    return validate(config, "small.yaml")


def test_finished_results_agree_and_damaged_ones_leave_it_open(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validate(small_config(), "small.yaml")
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "copy"))
    files = [file for kind in KINDS for file in Path("results").glob(kind)]
    assert {file: difference(config, file) for file in files} == dict.fromkeys(files, "")
    kinds = [next(Path("results").glob(kind)) for kind in KINDS]
    for text in (b"", b"\xff" * 20, b'{"evaluation": []}', b"PK\x03\x04", b"[" * 2000):
        for file in kinds:
            file.write_bytes(text if file.suffix != ".yaml" else text[:50])
            assert difference(config, file) is None or (file.suffix == ".yaml" and text[:1] == b"{")


@pytest.mark.parametrize(
    ("section", "key", "value", "file", "told"),
    [
        ("runs.uic_3k", "lr", 0.5, "runs/uic_3k/checkpoint.safetensors", "lr is 0.02 there, 0.5 now"),
        ("runs.uic_3k", "seed", 9, "runs/uic_3k/recipe.yaml", "seed is 0 there, 9 now"),
        ("evaluations.linear_probe.layers", "alexnet", ["conv1"], "metrics/uic_3k/linear_probe.json", "layers is ["),
        ("evaluations.linear_probe.layers", "alexnet", ["conv1"], "metrics/uic_vgg16_strong/linear_probe.json", ""),
        ("evaluations.linear_probe.images", "alexnet", 15, "metrics/uic_3k/linear_probe.json", "images is 16"),
        ("evaluations.linear_probe.images", "alexnet", 0, "metrics/uic_3k/linear_probe.json", "imagenet_train+"),
        ("evaluations.fewshot.resolutions", "native", {"resize": 70, "crop": 64}, "metrics/uic_3k/fewshot.json",
         "resolutions.native.resize is"),
        ("evaluations.knn", "precision", "bf16", "metrics/uic_3k/knn.json", 'precision is "fp32" there, "bf16" now'),
        ("evaluations.knn", "precision", "fp32", "metrics/uic_3k/knn.json", ""),
        ("evaluations.fewshot", "precision", "bf16", "protocols/fewshot.yaml", 'precision is "fp32" there, "bf16" now'),
        ("datasets.voc_segmentation", "root", "/x", "metrics/uic_3k_fft/segmentation.json", ""),
        ("datasets.voc_segmentation", "sbd", "/x", "metrics/uic_3k_fft/segmentation.json", None),
        ("datasets.voc_segmentation", "root", "/x", "data/voc_segmentation.yaml", "section.root is"),
        ("datasets.voc07", "test_images", 19, "metrics/uic_3k_fft/detection.json", None),
        ("datasets.cache", "format", "jpeg", "metrics/uic_3k/linear_probe.json", "is"),
        ("datasets.cache", "format", "jpeg", "metrics/uic_3k/clusters.json", ""),
    ],
)  # fmt: skip
def test_what_differs_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str, value: object, file: str, told: str | None
) -> None:
    monkeypatch.chdir(finished)
    found = difference(changed(section, key, value), Path("results", file))
    assert found is not None and told in found if told else found == told


@pytest.mark.parametrize(
    ("section", "key", "value", "file", "told"),
    [
        ("runs.uic_3k", "crop_scale", 0.2, "runs/uic_3k/recipe.yaml", "crop_scale is 0.2 there, null now"),
        ("runs.uic_3k", "crop_scale", 0.2, "runs/uic_3k/checkpoint.safetensors", "crop_scale is 0.2 there, null now"),
        ("evaluations.knn", "precision", "bf16", "protocols/knn.yaml", 'precision is "bf16" there, "fp32" now'),
        ("evaluations.fewshot", "precision", "bf16", "metrics/uic_3k/fewshot.json", 'precision is "bf16" there'),
    ],
)  # fmt: skip
def test_a_key_that_is_no_longer_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str, value: object, file: str, told: str
) -> None:
    stand_in.make(changed(section, key, value), tmp_path)
    monkeypatch.chdir(tmp_path)
    found = difference(validate(small_config(), "small.yaml"), Path("results", file))
    assert found is not None
    assert told in found


def test_a_cache_is_of_the_index_that_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the stages make both. Other classes or other bytes make another one."""
    monkeypatch.chdir(tmp_path)
    config = changed("datasets.cache", "format", "jpeg")
    dataset, listed = Path("results/data/imagenet.yaml"), Path("results/index/imagenet_train.npz")
    cached = listed.with_stem("imagenet_train_cached")
    recipe.save(config.datasets.one("imagenet"), dataset)
    synthetic.main(["--dataset", f"{dataset}"])

    def list_again() -> None:
        index.main(["--dataset", f"{dataset}", "--split", "train", "--out", f"{listed}"])

    def cache_again() -> None:
        root = "data/datasets/cache/imagenet"
        options = {"--index": listed, "--format": "jpeg", "--side": 73, "--root": root, "--out": cached}
        cache.main([str(each) for option in options.items() for each in option])

    list_again()
    cache_again()
    assert difference(config, cached) == ""
    list_again()
    assert difference(config, cached) == ""
    one, two, *_ = sorted(Path("data/datasets/imagenet/train").iterdir())
    for source, target in ((one, "aside"), (two, one), ("aside", two)):
        Path(source).rename(target)
    list_again()
    assert difference(config, cached).startswith("datasets.cache is")
    cache_again()
    assert difference(config, cached) == ""
    image = next(one.iterdir())
    shutil.copy2(next(two.iterdir()), image)
    list_again()
    assert difference(config, cached).startswith("datasets.cache is")
