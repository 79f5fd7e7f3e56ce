"""Two real processes with different data do what one does, wherever they must."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import forked
from tests.recipes import recipe
from uic_core.data.index import build_folder
from uic_core.errors import InputError
from uic_core.models import build
from uic_core.pretrain.loop import Trainer
from uic_core.recipe import save
from uic_core.run import parallel
from uic_core.run.parallel import Ranks

ROOT = Path(__file__).parents[2]
BASE = {"batch_size": 10}


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 400))
def test_batches_are_shared_out_evenly(world, share, images):
    size = world * (share + 1)
    alone = Ranks(0, world)
    if images < 2 * world:
        with pytest.raises(InputError, match="too few for"):
            alone.bounds(images, size)
        return
    bounds = alone.bounds(images, size)
    assert bounds[0][0] == 0
    assert all(first == last for (_, last), (first, _) in itertools.pairwise(bounds))
    assert images - bounds[-1][1] < 2 * world
    for first, last in bounds:
        parts = [Ranks(rank, world).share(first, last, 0) for rank in range(world)]
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
        assert (parts[0].start, parts[-1].stop) == (first, last)
        assert len({part.stop - part.start for part in parts}) == 1
        assert parts[0].stop - parts[0].start >= 2


@pytest.mark.parametrize("size", [3, 2])
def test_a_batch_that_does_not_divide_is_refused(size):
    with pytest.raises(InputError, match=f"batch_size: {size} images do not divide over 2 processes"):
        Ranks(0, 2).bounds(10, size)


@pytest.mark.parametrize("method", ["uic", "deepcluster", "finetune"])
def test_it_is_refused_before_a_pass_over_all_images(demo_data, method):
    made = recipe(method=method, batch_size=5)
    network = build("alexnet", classes=5, image_size=64, sobel=True)
    with pytest.raises(InputError, match="batch_size: 5 images do not divide over 2 processes"):
        Trainer(made, build_folder(demo_data.imagenet, "train", "imagenet"), network, None, Ranks(0, 2), 0, 300)


@pytest.mark.parametrize(
    ("changes", "variables"),
    [
        ({}, {}),
        ({"balanced": False}, {}),
        ({"label_view": "center_crop"}, {}),
        ({"method": "deepcluster", "schedule": "constant"}, {}),
        ({"method": "deepcluster", "schedule": "constant"}, {"DEVICE": "1"}),
        ({"method": "selflabel", "heads": 2}, {}),
    ],
    ids=["uic", "balanced", "center_crop", "deepcluster", "deepcluster_on_the_device", "selflabel"],
)
def test_two_processes_leave_what_one_leaves(demo_data, tmp_path, changes, variables):
    """Gradients (as the weights they lead to), labels, order and coverage."""
    build_folder(demo_data.imagenet, "train", "imagenet").save(tmp_path / "index.npz")
    save(recipe(**BASE | changes), tmp_path / "recipe.yaml")
    for ranks in (1, 2):
        process = forked.Process(
            "tests.run.same_statistics", "--recipe", str(tmp_path / "recipe.yaml"),
            "--train-index", str(tmp_path / "index.npz"), "--out", str(tmp_path / str(ranks)),
            ranks=ranks, OMP_NUM_THREADS="1", **variables,
        )  # fmt: skip
        _, err = process.communicate()
        assert process.returncode == 0, err
    one, two = (tmp_path / name for name in "12")
    assert np.load(one / "labels.npy").tolist() == np.load(two / "labels.npy").tolist()
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()] for folder in (one, two)
    ]
    for alone, shared in zip(*histories, strict=True):
        assert {key: value for key, value in alone.items() if key != "loss"} == {
            key: value for key, value in shared.items() if key != "loss"
        }
        assert alone["loss"] == pytest.approx(shared["loss"], abs=1e-4)
    weights = [safetensors.numpy.load_file(folder / "checkpoint.safetensors") for folder in (one, two)]
    for name, alone in weights[0].items():
        np.testing.assert_allclose(weights[1][name], alone, atol=5e-5, err_msg=name)


def test_an_error_of_one_process_alone_is_printed_and_ends_the_others(tmp_path):
    """They wait for it in a collective."""
    (tmp_path / "script.py").write_text(
        "import torch\nfrom uic_core.errors import InputError\nfrom uic_core.run import parallel\n"
        "with parallel.group(torch.device('cpu')) as ranks:\n"
        "    if ranks.rank:\n        raise InputError('no such image')\n"
        "    ranks.barrier()\n"
    )
    process = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(tmp_path / "script.py"),
        ],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert process.returncode != 0
    assert "error: no such image" in process.stderr


def test_a_process_of_a_gpu_group_leaves_it_by_itself(monkeypatch, capsys):
    """nccl would wait for the others, who are in a collective: the message, then the end."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, does in {"init_process_group": None, "get_rank": 1, "destroy_process_group": None}.items():
        monkeypatch.setattr(parallel.dist, name, lambda *_, does=does, **__: does)
    ended = []
    monkeypatch.setattr(parallel.os, "_exit", ended.append)
    monkeypatch.setattr(parallel.ctypes, "CDLL", lambda _: SimpleNamespace(prctl=lambda *_: None))
    with pytest.raises(SystemExit), parallel.group(torch.device("cuda", 0)):
        raise InputError("no such image")
    assert ended == [2]
    assert capsys.readouterr().err == "error: no such image\n"
