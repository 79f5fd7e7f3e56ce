"""DeepCluster's PCA, whitening and k-means in torch against faiss, and the same from two processes as from one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.recipes import recipe
from uic_core.errors import InputError
from uic_core.methods import deepcluster, kmeans
from uic_core.methods.kmeans import clustered, splits, whitened
from uic_core.methods.method import Inference
from uic_core.run.parallel import ALONE

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ITERATIONS, SEED = 8, 5


def drawn(images: int = 2000, width: int = 24) -> NDArray[np.float32]:
    """Features with correlated numbers, in no clear clusters."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(images, width)) @ rng.normal(size=(width, width)) + 3).astype(np.float32)


def separated(classes: int) -> NDArray[np.float32]:
    """Rows of length 1 around `classes` directions at right angles."""
    rng = np.random.default_rng(1)
    rows = 30 * np.eye(classes)[rng.integers(classes, size=50 * classes)] + rng.normal(size=(50 * classes, classes))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def repeated() -> NDArray[np.float32]:
    """Rows of which 100 are equal: all but one of the first centroids among them run empty.

    Whole numbers are added without rounding, so that equal distances are equal.
    """
    rows = np.random.default_rng(0).integers(-20, 20, (2000, 8)).astype(np.float32)
    rows[:100] = rows[0]
    return rows


def ours(rows: NDArray[np.float32], classes: int, device: str = "cpu") -> list[int]:
    """Labels."""
    found = torch.from_numpy(rows).to(device)
    return clustered(found, np.arange(len(rows)), len(rows), classes, ITERATIONS, SEED).tolist()


def by_faiss(rows: NDArray[np.float32], classes: int) -> list[int]:
    """Labels."""
    known = faiss.Kmeans(
        rows.shape[1], classes, niter=ITERATIONS, seed=SEED, min_points_per_centroid=1, max_points_per_centroid=10**7
    )
    known.train(rows)
    return known.index.search(rows, 1)[1].ravel().tolist()


def objective(rows: NDArray[np.float32], labels: list[int]) -> float:
    """Sum of squared distances to the clusters' means."""
    members = [rows[np.array(labels) == number].astype(np.float64) for number in set(labels)]
    return float(sum(((each - each.mean(0)) ** 2).sum() for each in members))


@pytest.mark.parametrize("classes", [1, 7, 100])
def test_the_objective_is_that_of_faiss_from_the_same_start(classes: int):
    rows = drawn()
    found, known = ours(rows, classes), by_faiss(rows, classes)
    assert objective(rows, found) == pytest.approx(objective(rows, known), rel=1e-4)
    assert (np.array(found) != known).mean() < 0.01


def test_separated_clusters_have_the_labels_of_faiss():
    rows = separated(12)
    assert ours(rows, 12) == by_faiss(rows, 12)


def test_clusters_that_run_empty_take_half_of_those_that_faiss_takes():
    rows = repeated()
    first = kmeans._drawn(torch.from_numpy(rows), np.arange(len(rows)), len(rows), 90, SEED, ALONE)
    assert len(first.unique(dim=0)) == 88, "two run empty, else the test would say nothing"
    assert ours(rows, 90) == by_faiss(rows, 90)


def split_by_faiss(counts: NDArray[np.float64], images: int) -> list[tuple[int, int]]:
    """The loop of its Clustering.cpp, with its random numbers."""
    members, random, found = counts.astype(np.float32), faiss.RandomGenerator(1234), []
    for empty in range(len(members)):
        if members[empty] == 0:
            for turn in count():
                large = turn % len(members)
                if random.rand_float() < np.float32((members[large] - 1.0) / np.float32(images - len(members))):
                    break
            members[empty] = members[large] / 2
            members[large] -= members[empty]
            found.append((empty, large))
    return found


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_any_number_of_empty_clusters_is_split_as_faiss_does(share: float):
    rng = np.random.default_rng(0)
    counts = np.where(rng.random(300) < share, 0.0, rng.integers(1, 2000, 300))
    images = int(counts.sum())
    assert [*splits(counts, images)] == split_by_faiss(counts, images)
    assert len([*splits(counts, images)]) == (counts == 0).sum()


def test_as_many_images_as_clusters_leave_none_without_a_centroid():
    assert [*splits(np.array([0, 1, 2], np.float64), 3)] == [(0, 2)]


@pytest.mark.parametrize(("images", "dimension"), [(2000, 10), (2000, 24), (20, 24)])
def test_whitened_rows_are_those_of_faiss_but_for_signs(images: int, dimension: int):
    features = drawn(images)
    found = whitened(torch.from_numpy(features), images, dimension, CPU).numpy()
    known = deepcluster.whiten(features, dimension)
    assert found.shape == known.shape == (images, min(dimension, images - 1))
    signs = np.sign((found * known).sum(0))
    np.testing.assert_allclose(found * signs, known, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("images", "dead"), [(48, 0), (48, 60), (500, 60)])
def test_directions_without_variance_are_left_out(images: int, dead: int):
    features = np.random.default_rng(0).normal(size=(images, 64)).astype(np.float32)
    features[:, :dead] = 0
    found = whitened(torch.from_numpy(features), images, 64, CPU)
    assert found.shape == (images, min(images - 1, 64 - dead))
    assert torch.isfinite(found).all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    rows, before = drawn(), {}
    for name, size in {"whole": 1 << 22, "chunks": 999}.items():
        monkeypatch.setattr(kmeans, "_CHUNK", {"cpu": size})
        before[name] = (ours(rows, 30), whitened(torch.from_numpy(rows), len(rows), 10, CPU))
    assert before["whole"][0] == before["chunks"][0]
    assert {chunk.numel() for _, chunk in kmeans._chunks(torch.from_numpy(rows), 24, CPU)} == {41 * 24, 32 * 24}
    torch.testing.assert_close(before["whole"][1].abs(), before["chunks"][1].abs(), rtol=0, atol=1e-5)


def test_a_seed_gives_the_same_bytes_and_another_one_others():
    rows = torch.from_numpy(drawn())
    first, again, other = (clustered(rows, np.arange(2000), 2000, 30, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("value", [np.inf, 0.0])
def test_features_of_a_network_that_diverged_are_refused(value: float):
    """By faiss and by torch: not finite, or the same for all images. faiss alone would end the process by a signal."""
    features = drawn()
    features[7 if value else slice(None)] = value
    what = "not finite" if value else "the same for all images"
    for white in (
        lambda: deepcluster.whiten(features, 10),
        lambda: whitened(torch.from_numpy(features), len(features), 10, CPU),
    ):
        with pytest.raises(InputError, match=f"features are {what}, the training diverged; lower lr"):
            white()


SHARED = """
    import json, sys
    import numpy as np
    import torch
    from uic_core.methods.kmeans import clustered, whitened
    from uic_core.run import parallel

    features, repeated = (torch.from_numpy(np.load(name)) for name in sys.argv[1:])
    images, device, made = len(features), torch.device("cpu"), []
    with parallel.group(device) as ranks:
        own = np.flatnonzero(np.arange(images) % 3 == 0 if ranks.rank else np.arange(images) % 3 > 0)
        for rows in (whitened(features[own], images, 10, device, ranks), repeated[own]):
            after = []
            labels = clustered(rows, own, images, 90, 8, 5, ranks, after=lambda: after.append(1))
            found = np.zeros(images, np.int32)
            found[own] = labels.numpy()
            ranks.sum_array(found, device)
            made.append([found.tolist(), len(after)])
    if ranks.rank:
        print(json.dumps(made))
"""


def test_two_processes_find_what_one_finds(tmp_path: Path):
    """They hold other images, one twice as many as the other."""
    files = {tmp_path / "features.npy": drawn(), tmp_path / "repeated.npy": repeated()}
    for file, rows in files.items():
        np.save(file, rows)
    (tmp_path / "script.py").write_text(textwrap.dedent(SHARED))
    process = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(tmp_path / "script.py"), *map(str, files),
        ],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    white = whitened(torch.from_numpy(drawn()), 2000, 10, CPU).numpy()
    for rows, (labels, pauses) in zip((white, repeated()), json.loads(process.stdout), strict=True):
        assert labels == ours(rows, 90)
        assert pauses == ITERATIONS


@pytest.mark.parametrize(("cuda", "asked"), [(True, "embed_share"), (False, "embed")])
def test_a_gpu_clusters_by_torch_and_a_cpu_by_faiss(cuda: bool, asked: str):
    def stop() -> None:
        raise InterruptedError

    inference = SimpleNamespace(
        top=SimpleNamespace(weight=SimpleNamespace(is_cuda=cuda, device=CPU)), ranks=None, **{asked: stop}
    )
    with pytest.raises(InterruptedError):
        deepcluster.labels(recipe(method="deepcluster"), 0, np.zeros(9, np.int32), cast(Inference, inference))


@pytest.mark.gpu
def test_the_gpu_gives_the_cpus_labels():
    features = torch.from_numpy(separated(12))
    for place in (CPU, torch.device("cuda")):  # where the features are
        white = [whitened(features.to(place), len(features), 11, device) for device in (CPU, torch.device("cuda"))]
        labels = [ours(rows.cpu().numpy(), 12, rows.device.type) for rows in white]
        assert labels[0] == labels[1]
    rows = drawn()
    objectives = [objective(rows, ours(rows, 100, device)) for device in ("cpu", "cuda")]
    assert objectives[1] == pytest.approx(objectives[0], rel=1e-4)
