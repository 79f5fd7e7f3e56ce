"""The loader: the same crops whatever the workers, the order asked for, and errors that name the file."""

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from uic_core.data import reader
from uic_core.data.augment import CROP_UNIFORMS, crop_box
from uic_core.data.index import Index, build_folder
from uic_core.data.loader import Loader, View, ignore_foreign_sigterm
from uic_core.errors import InputError, stage
from uic_core.run.randomness import uniforms

SIZE, RESIZE = 32, 36
VIEWS: tuple[View, ...] = ("resized_crop", "random_crop", "center_crop")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for image in range(14):
        folder = root / "train" / f"class{image % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        width, height = rng.permutation([rng.integers(40, 3 * RESIZE), rng.integers(40, 160)]).tolist()
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{image:02}.JPEG", format="JPEG")
    return build_folder(root, "train", "imagenet")


@pytest.fixture(scope="module", params=[0, 1, 2])
def loader(request: pytest.FixtureRequest, index: Index) -> Iterator[Loader]:
    loader = Loader(index, SIZE, RESIZE, 4, request.param)
    yield loader
    loader.close()


@pytest.fixture(scope="module")
def plain(index: Index) -> Loader:
    """The reference: no workers."""
    return Loader(index, SIZE, RESIZE, 4, 0)


def collect(
    loader: Loader, order: list[int], batch: int = 4, view: View = "resized_crop", seed: int = 1, epoch: int = 0
):
    """All images and draws of a pass in batches of `batch`, at most the loader's 4."""
    parts = np.split(np.array(order), range(batch, len(order), batch))
    batches = [(images.clone(), draws) for images, draws in loader.stream(parts, view, seed, epoch)]
    return torch.cat([images for images, _ in batches]), np.concatenate([draws for _, draws in batches])


ORDER = [3, 0, 13, 7, 7, 1, 12, 5, 2, 3, 11]


@pytest.mark.parametrize("view", VIEWS)
def test_crops_and_order_are_the_same_for_any_number_of_workers(loader: Loader, plain: Loader, view: View):
    for epoch in (0, 1):
        images, positions = collect(loader, ORDER, view=view, epoch=epoch)
        want, _ = collect(plain, ORDER, view=view, epoch=epoch, batch=3)
        assert images.dtype == torch.uint8
        assert positions.tolist() == ORDER
        assert torch.equal(images, want)


def test_every_pass_follows_its_own_order_and_batch_size(loader: Loader):
    for order, batch, sizes in [
        ([5, 4, 3, 2, 1], 2, [2, 2, 1]),
        (list(range(14)), 4, [4, 4, 4, 2]),
        ([9], 4, [1]),
        ([], 4, []),
    ]:
        parts = np.split(np.array(order, np.int64), range(batch, len(order), batch)) if order else []
        batches = list(loader.stream(parts, "center_crop", 0, 0))
        assert [len(images) for images, _ in batches] == sizes
        assert [position for _, positions in batches for position in positions.tolist()] == order


def test_crops_depend_on_seed_epoch_and_image_only(plain: Loader):
    first, _ = collect(plain, ORDER)
    again, _ = collect(plain, ORDER[::-1], batch=3)
    assert torch.equal(first, again.flip(0))
    assert torch.equal(first[3], first[4])  # the same image twice in an epoch
    for other in ({"seed": 2}, {"epoch": 1}):
        assert not torch.equal(first, collect(plain, ORDER, **other)[0])
        center = [collect(plain, ORDER, view="center_crop", **settings)[0] for settings in ({}, other)]
        assert torch.equal(*center)


def test_each_view_equals_reading_the_image_alone(plain: Loader, index: Index):
    u = uniforms(1 + (1 << 32), 0, np.arange(len(index)), CROP_UNIFORMS)
    got = {view: collect(plain, list(range(len(index))), view=view)[0].numpy() for view in VIEWS}
    for position in range(len(index)):
        image = reader.read_rgb(index.file(position))
        np.testing.assert_array_equal(got["center_crop"][position], reader.center_crop(image, RESIZE, SIZE))
        want = reader.resized_crop(image, crop_box(*image.size, u[position]), SIZE)
        assert abs(got["resized_crop"][position].astype(int) - want).mean() < 2  # large crops decode at reduced size
        whole = np.asarray(reader.shorter_side(image, RESIZE)).transpose(2, 0, 1).astype(int)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (3, SIZE, SIZE))[0]
        distance = abs(windows - got["random_crop"][position]).max((2, 3, 4))
        assert distance.min() <= 1  # a window of the resized image


def test_random_crops_reach_every_place(plain: Loader, index: Index):
    """All (RESIZE - SIZE + 1) offsets of the shorter side occur, evenly."""
    image = reader.read_rgb(index.file(0))
    whole = np.asarray(reader.shorter_side(image, RESIZE)).transpose(2, 0, 1).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (3, SIZE, SIZE))[0]
    counts = np.zeros(windows.shape[:2], int)
    for epoch in range(400):
        crop, _ = collect(plain, [0], view="random_crop", epoch=epoch)
        distance = abs(windows - crop[0].numpy()).max((2, 3, 4))
        counts[np.unravel_index(distance.argmin(), distance.shape)] += 1
    shorter = counts.sum(int(whole.shape[1] <= whole.shape[2]))
    assert len(shorter) == RESIZE - SIZE + 1
    assert shorter.min() > 400 / len(shorter) * 0.6


def test_crop_numbers_are_not_those_of_the_augmentation(plain: Loader, index: Index):
    image = reader.read_rgb(index.file(0))
    box = crop_box(*image.size, uniforms(1, 0, np.array([0]), CROP_UNIFORMS)[0])
    assert not np.array_equal(collect(plain, [0])[0][0].numpy(), reader.resized_crop(image, box, SIZE))


def test_a_pass_may_be_left_early(loader: Loader, plain: Loader):
    for _ in loader.batches(np.arange(14), "resized_crop", 1, 5):
        break
    assert torch.equal(collect(loader, ORDER)[0], collect(plain, ORDER)[0])


def test_two_passes_at_once_are_our_mistake(loader: Loader):
    first = loader.batches(np.arange(14), "resized_crop", 1, 0)
    next(first)
    next(loader.batches(np.arange(14), "resized_crop", 1, 1))
    with pytest.raises(AssertionError, match="one pass at a time"):
        next(first)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_slow_consumer_sees_no_slot_that_was_used_again(index: Index, plain: Loader, device: str):
    """The workers run ahead by all slots, and on a GPU the copies lag behind them."""
    loader = Loader(index, SIZE, RESIZE, 4, 2, torch.device(device))
    order = np.tile(np.arange(14), 6)
    seen = []
    for images, _ in loader.batches(order, "resized_crop", 1, 0):
        if device == "cuda":
            with torch.cuda.stream(loader._slots._stream):
                torch.cuda._sleep(20_000_000)  # the next copy waits for it
        else:
            time.sleep(0.02)
        seen.append(images.clone())
    got = torch.cat(seen).cpu()
    want = torch.cat([images.clone() for images, _ in plain.batches(order, "resized_crop", 1, 0)])
    assert torch.equal(got, want)
    loader.close()
    assert torch.zeros(1, device=device).sum().item() == 0  # closing left no error behind


def test_unknown_positions_are_our_mistake(plain: Loader):
    with pytest.raises(AssertionError, match="unknown positions"):
        collect(plain, [-1])


def test_an_image_has_as_many_views_as_are_asked_for(plain: Loader):
    views, draws = collect(plain, [3, 3 + 14, 3 + 28, 3])
    assert draws.tolist() == [3, 17, 31, 3]
    assert torch.equal(views[0], views[3])
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    centre, _ = collect(plain, [3, 17], view="center_crop")
    assert torch.equal(*centre)


def test_the_global_generators_are_left_alone(loader: Loader):
    state = torch.get_rng_state()
    collect(loader, ORDER)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_an_input_error_that_names_the_file(index: Index, tmp_path: Path, workers: int):
    root = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(index.root), str(root)], check=True)
    bad = root / str(index.paths[6])
    bad.write_bytes(bad.read_bytes()[:200])
    loader = Loader(build_folder(root, "train", "imagenet"), SIZE, RESIZE, 4, workers)
    batches = loader.batches(np.arange(14), "resized_crop", 0, 0)
    assert next(batches)[1].tolist() == [0, 1, 2, 3]  # the batch before it comes through
    with pytest.raises(InputError) as caught:
        next(batches)
    assert str(caught.value).startswith(f"{bad}: cannot be read (")
    assert "Traceback" not in str(caught.value)
    good, _ = collect(loader, [0, 1])  # and the loader is still usable
    assert len(good) == 2
    bad.unlink()
    with pytest.raises(InputError, match="No such file"):
        collect(loader, [6])
    loader.close()


def test_workers_live_across_epochs_use_one_thread_and_end_with_close(index: Index):
    loader = Loader(index, SIZE, RESIZE, 4, 2)
    before = {process.pid for process in multiprocessing.active_children()}
    collect(loader, ORDER)
    workers = [process for process in multiprocessing.active_children() if process.pid not in before]
    collect(loader, ORDER, epoch=1)
    assert len(workers) == 2
    assert all(worker in multiprocessing.active_children() for worker in workers)
    loader.close()
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(AssertionError, match="closed"):
        collect(loader, ORDER)


def test_sigterm_from_outside_does_not_end_the_workers(index: Index, plain: Loader):
    loader = Loader(index, SIZE, RESIZE, 4, 2)
    before = {process.pid for process in multiprocessing.active_children()}
    passing = loader.batches(np.array(ORDER), "resized_crop", 1, 0)
    batches = [next(passing)[0].clone() for _ in range(2)]  # one of each: both have begun
    workers = [process for process in multiprocessing.active_children() if process.pid not in before]
    pids = " ".join(str(worker.pid) for worker in workers)
    subprocess.run(["bash", "-c", f"kill -TERM {pids}"], check=True)
    time.sleep(0.3)
    batches += [images.clone() for images, _ in passing]
    assert torch.equal(torch.cat(batches), collect(plain, ORDER)[0])
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # our own still counts
    workers[0].join(5)
    assert workers[0].exitcode == 0
    del passing
    loader.close()


def test_an_orderly_end_without_close_leaves_no_process_behind(index: Index, tmp_path: Path):
    index.save(tmp_path / "index.npz")
    script = f"""
        import multiprocessing, numpy as np, sys
        from pathlib import Path
        from uic_core.data.index import Index
        from uic_core.data.loader import Loader
        loader = Loader(Index.load(Path({str(tmp_path / "index.npz")!r})), {SIZE}, {RESIZE}, 2, 2)
        for images, positions in loader.batches(np.arange(14), "resized_crop", 0, 0):
            print(*[process.pid for process in multiprocessing.active_children()], flush=True)
            raise SystemExit(3)
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=Path(reader.__file__).parents[2],
    )
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - started < 60
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIG_DFL)  # signal 0: does it exist?


def test_workers_hold_no_copy_of_the_index(index: Index):
    """Eight workers and a million images: what a worker has for itself is the same as for fourteen."""
    images = 1_000_000
    many = replace(index, paths=np.resize(index.paths, images), labels=np.resize(index.labels, images))
    own = []
    for each in (index, many):
        loader = Loader(each, SIZE, RESIZE, 4, 8)
        before = {process.pid for process in multiprocessing.active_children()}
        for _ in loader.batches(np.arange(0, len(each), len(each) // 14), "resized_crop", 0, 0):
            pass
        workers = [process.pid for process in multiprocessing.active_children() if process.pid not in before]
        assert len(workers) == 8
        own.append(max(psutil.Process(pid).memory_full_info().uss for pid in workers))
        loader.close()
    size = many.paths.nbytes + many.labels.nbytes
    assert own[1] - own[0] < 0.02 * size, f"{own[1] - own[0]} bytes more a worker, of {size}"


class _Large(Dataset):
    """A batch of a megabyte, in a process that may write no file as large: /dev/shm is full for it."""

    def __getitem__(self, request):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        return torch.zeros(1 << 20, dtype=torch.uint8)


@pytest.mark.parametrize("collate", [None, list], ids=["one request", "as mmengine collates"])
def test_fault_46_a_batch_that_does_not_fit_into_shared_memory_ends_the_stage(seen, capfd, collate):
    """It was lost, and waited for without end. Three processes decode, as they do for detection."""
    loader = DataLoader(
        _Large(), batch_size=None if collate is None else 1, sampler=range(8), num_workers=3, collate_fn=collate,
        worker_init_fn=ignore_foreign_sigterm,
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop, stage():
        list(loader)
    err = capfd.readouterr().err
    seen(err.splitlines()[-1])
    assert stop.value.code == 1
    assert "error: a decoding process ended (DataLoader worker" in err
    assert "give the container more (docker run --shm-size)" in err
    assert "a decoding process cannot pass its batch on" in err
    assert "Traceback" not in err
