"""A checkpoint is read back exactly or refused with a reason; it never runs code."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.recipes import recipe
from uic_core import checkpoint
from uic_core import recipe as recipes
from uic_core.errors import InputError
from uic_core.files import sha256, stamp, unchanged
from uic_core.models import build
from uic_core.run import trained


@pytest.fixture
def saved(tmp_path):
    made = recipe(method="random", arch="resnet50", sobel=False)
    network = build("resnet50", classes=5, image_size=64, sobel=False)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, network, made, {"data": "abc"})
    return path, network, made


def test_round_trip(saved):
    path, network, recipe = saved
    loaded, read = checkpoint.load(path)
    assert read == recipe
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), loaded.state_dict().values(), strict=1))


def rewrite(path, change):
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, header)
    safetensors.torch.save_file(tensors, path, metadata=header)


def recipe_of(header, change):
    content = json.loads(header[checkpoint.FORMAT])
    change(content["recipe"])
    header[checkpoint.FORMAT] = json.dumps(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.pop("top.bias"), r"weights missing: \['top.bias'\]"),
        (lambda t, h: t.update(other=torch.zeros(1)), r"unexpected: \['other'\]"),
        (lambda t, h: t.update({"top.bias": torch.zeros(6)}), r"weight top.bias is \[6\], expected \[5\]"),
        (lambda t, h: t["top.bias"].fill_(float("nan")), "weight top.bias is not finite"),
        (lambda t, h: h.clear(), "not a checkpoint of this suite"),
        (lambda t, h: recipe_of(h, lambda r: r.pop("method")), "recipe: method: missing"),
        (lambda t, h: recipe_of(h, lambda r: r.update(arch="vgg16")), "weights missing"),
    ],
)
def test_a_foreign_checkpoint_is_refused_with_the_reason(saved, change, message):
    path = saved[0]
    rewrite(path, change)
    with pytest.raises(InputError, match=message) as error:
        checkpoint.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_a_truncated_file_is_named(saved, keep):
    path = saved[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: is no whole safetensors file"):
        checkpoint.load(path)


def test_a_pickle_is_not_run(saved, tmp_path):
    path, trace = saved[0], tmp_path / "trace"

    class Payload:
        def __reduce__(self):
            return (trace.write_text, ("ran",))

    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="is no whole safetensors file"):
        checkpoint.load(path)
    assert not trace.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="is not there; run snakemake to make it"):
        checkpoint.load(tmp_path / "checkpoint.safetensors")


def test_not_finite_weights_are_not_saved(saved):
    path, network, recipe = saved
    before = path.read_bytes()
    network.top.bias.data[0] = float("inf")
    with pytest.raises(InputError, match=r"weight top\.bias is not finite"):
        checkpoint.save(path, network, recipe, {})
    assert path.read_bytes() == before


def test_fault_28_the_hash_is_that_of_the_bytes_that_were_read(saved, tmp_path, monkeypatch):
    path, network, made = saved
    before = sha256(path)
    with torch.no_grad():
        network.top.bias += 1
    checkpoint.save(tmp_path / "other", network, made, {})
    whole = Path.read_bytes

    def replaced_after_reading(self):
        content = whole(self)
        if self == path:
            (tmp_path / "other").replace(path)
        return content

    monkeypatch.setattr(Path, "read_bytes", replaced_after_reading)
    loaded, _, origin = checkpoint.of_run("run", path)
    assert origin.checkpoint == before != sha256(path)
    assert origin.stamp != tuple(stamp(path))  # so the new file is looked at again
    assert torch.equal(loaded.top.bias, network.top.bias - 1)


def test_fault_28_a_file_replaced_while_it_is_read_is_an_error(tmp_path, seen):
    path = tmp_path / "labels.npy"
    path.write_bytes(b"one")
    with pytest.raises(InputError) as error, unchanged(labels=path):
        path.write_bytes(b"two")
    seen(error.value)
    assert str(error.value) == f"{path}: was replaced while it was read; run the same command again"


def test_fault_29_a_checkpoint_of_another_run_or_seed_is_refused(saved, tmp_path, seen):
    path, _, made = saved
    recipes.save(made, tmp_path / "recipe.yaml")
    assert checkpoint.of_run("run", path)[2].seeds == (made.seed,)
    recipes.save(made.model_copy(update={"seed": 1}), tmp_path / "recipe.yaml")
    with pytest.raises(InputError) as error:
        checkpoint.of_run("run", path)
    seen(error.value)
    assert str(error.value) == (
        f"{path}: is not the checkpoint of {tmp_path / 'recipe.yaml'} (seed: 3, not 1); put this run's checkpoint "
        "back, or delete the file and run snakemake to train it again"
    )


def test_fault_29_a_file_that_the_training_did_not_write_is_refused(saved, seen):
    path = saved[0]
    digest = sha256(path)
    assert trained.check(path, digest) == ""
    trained.write(path.parent, [path.name])
    assert trained.check(path, digest)
    assert trained.check(path.parent / "labels.npy", "0") == ""  # not named there
    rewrite(path, lambda tensors, header: tensors["top.bias"].add_(1))  # of the same recipe, from elsewhere
    with pytest.raises(InputError, match="is not the file that the run's training wrote") as error:
        checkpoint.of_run("run", path)
    seen(error.value)
    (path.parent / trained.NAME).unlink()  # the remedy
    assert checkpoint.of_run("run", path)[2].trained_by == ""
    (path.parent / trained.NAME).write_text("{}")
    with pytest.raises(InputError, match=r"training\.json: is damaged \(ValidationError\); delete it"):
        trained.check(path, digest)
