"""Damaged bytes, wherever they are in a file of numpy or JSON: the file is named, and nothing ends in a traceback."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from bench.small_dag import small_config
from tests.run.test_metrics import example
from tests.test_samples import detected, detections
from tests.workflow import stand_in
from uic_core.config import validate
from uic_core.data import cache, stamps
from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.evaluate import clusters
from uic_core.evaluations.clusters import ClusterArrays
from uic_core.openmmlab import proposals
from uic_core.overview.recorded import difference
from uic_core.pretrain import content
from uic_core.run import metrics, saved_state, trained
from uic_core.samples import Detected
from uic_core.samples import load as load_samples

Read = Callable[[Path], object]


def damaged(whole: bytes, places: int = 300) -> Iterator[bytes]:
    """The bytes with a bit turned, or a few bytes zeroed or replaced, at many places; cut; and nested without end."""
    random.seed(0)
    for place in range(0, len(whole), -(-len(whole) // places)):
        turned = bytes([whole[place] ^ 1 << random.randrange(8)])
        for other in (turned, bytes(4), random.randbytes(random.randrange(1, 4))):
            yield whole[:place] + other + whole[place + len(other) :]
    yield from (b"", whole[:-1], whole[: len(whole) // 2], b"[" * 100_000)


def index(path: Path) -> Read:
    Index("x_train", Path("/x"), np.array(["a", "b"], "T"), np.array([0, 1], np.int32), ("a", "b"), "0" * 16).save(path)
    return Index.load


def proposal_file(path: Path) -> Read:
    boxes = np.array([[0, 0, 5, 5], [1, 1, 6, 6]], np.float32)
    proposals.ProposedBoxes(("1",), np.array([0, 2]), boxes, "0", {"source": "sha256:0"}).save(path)
    return lambda file: proposals.load(file, None, {"1": (9, 9)})


def samples(path: Path) -> Read:
    detections(detected()).save(path)
    return lambda file: load_samples(file, Detected)


def arrays_of_clusters(path: Path) -> Read:
    one, grid = np.array([1]), np.array([[0]])
    np.savez(path, class_sizes=one, grid_classes=one - 1, grid_images=grid, grid_entropy=np.ones(1), grid_annotated=one)
    return ClusterArrays.load


def labels(path: Path) -> Read:
    with path.open("wb") as file:
        np.save(file, np.arange(9, dtype=np.int32))
    return lambda file: clusters.read_labels(file, 9, 9)


def history(path: Path) -> Read:
    path.write_text(json.dumps({"empty_classes": 0, "nmi_annotated": 0.5}) + "\n")
    return clusters.read_history


def sizes_and_times(path: Path) -> Read:
    made = path.with_name("made.npz")
    stamps.save(made, [__file__])
    path.symlink_to(stamps.beside(made))
    return lambda _: stamps.verify(made, [__file__])


def measured(path: Path) -> Read:
    metrics.write(path, example(conv1=12.5))
    return metrics.read


def training(path: Path) -> Read:
    trained.write(path.parent, [])
    path.symlink_to(path.parent / trained.NAME)
    return lambda file: trained.read(file.parent)


def table_of_the_cache(path: Path) -> Read:
    """Of which `None` says that it is damaged."""
    with path.open("wb") as file:
        np.savez(file, table=np.ones((2, 4), np.int64))
    return cache._read_table


def archive(path: Path) -> Read:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", "")
    return content.kind


KINDS = (
    index, proposal_file, samples, arrays_of_clusters, labels, history, sizes_and_times, measured, training,
    table_of_the_cache, archive,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore")
def test_fault_59_a_damaged_file_is_named_wherever_its_bytes_are_wrong(
    tmp_path: Path, kind: Callable[[Path], Read], seen: Callable[[object], None]
) -> None:
    folder = tmp_path / "of_a_run"
    folder.mkdir()
    path = folder / "file.npz"
    read, told = kind(path), {}
    whole = path.read_bytes()
    read(path)
    for spoilt in damaged(whole):
        path.write_bytes(spoilt)
        try:
            read(path)
        except InputError as error:
            told[type(error.__cause__).__name__] = str(error)
    assert all(str(folder) in each for each in told.values())
    seen(f"{', '.join(sorted(told))}: {next(iter(told.values()), 'all are made again')[:300]}")


def test_fault_59_a_state_nested_without_end_is_no_whole_state(tmp_path: Path, seen: Callable[[object], None]) -> None:
    """So that the previous one is used."""
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1)}, path, {"state": "[" * 100_000})
    with pytest.raises(ValueError, match="recursion") as error:
        saved_state._read(path)
    seen(error.value)


@pytest.mark.filterwarnings("ignore")
def test_fault_50_damaged_results_never_keep_a_snakemake_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Callable[[object], None]
) -> None:
    """Which compares each of them with the config while it makes its plan."""
    small = small_config()
    small["datasets"]["cache"]["format"] = "jpeg"
    config = validate(small, "small.yaml")
    monkeypatch.chdir(tmp_path)
    stand_in.make(config, tmp_path)
    run, knn = "results/runs/uic_3k", "results/metrics/uic_3k/knn.json"
    cached, boxes = "results/index/imagenet_train_cached.npz", "results/proposals/voc07_test.npz"
    asked = {
        f"{run}/checkpoint.safetensors": f"{run}/checkpoint.safetensors", f"{run}/training.json": knn,
        f"{run}/recipe.yaml": f"{run}/recipe.yaml", knn: knn, cached: cached, boxes: boxes,
        "results/index/imagenet_val.npz": knn, "results/data/imagenet.yaml": knn,
    }  # fmt: skip
    answers = set()
    for name, asks in asked.items():
        file = Path(name)
        whole = file.read_bytes()
        assert difference(config, Path(asks)) == ""
        for spoilt in damaged(whole, 50):
            file.write_bytes(spoilt)
            answers.add(type(difference(config, Path(asks))))
        file.write_bytes(whole)
    seen(f"{len(asked)} files, {', '.join(sorted(each.__name__ for each in answers))}")
    assert answers == {str, type(None)}
