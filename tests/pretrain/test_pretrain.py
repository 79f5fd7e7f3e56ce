"""Every method trains on real files; equal seeds give equal bytes; an interrupted run goes on as if nothing was."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import faiss
import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.recipes import recipe
from uic_core import checkpoint
from uic_core.data import partition, reader
from uic_core.data.augment import normalize
from uic_core.data.index import build_folder
from uic_core.errors import INTERRUPTED, InputError
from uic_core.methods import METHODS, deepcluster, kmeans
from uic_core.methods.labels import draw_initial
from uic_core.pretrain import finetune, label_passes, loop, progress
from uic_core.pretrain.__main__ import main
from uic_core.recipe import Stepped, save
from uic_core.run import metrics, saved_state

OUTPUTS = ("checkpoint.safetensors", "labels.npy", "history.jsonl")


@pytest.fixture
def small(demo_data, tmp_path):
    """Run the stage on a small recipe: small(folder, **changes) -> the folder."""
    index = tmp_path / "index.npz"
    build_folder(demo_data.imagenet, "train", "imagenet").save(index)

    def run(name, *arguments, **changes):
        folder = tmp_path / name
        save(recipe(**changes), folder / "recipe.yaml")
        main(["--recipe", str(folder / "recipe.yaml"), "--train-index", str(index), "--out", str(folder), *arguments])
        return folder

    return run


@pytest.fixture
def altered(monkeypatch):
    """altered(name, **parts) puts other parts into a method."""
    return lambda name, **parts: monkeypatch.setitem(METHODS, name, replace(METHODS[name], **parts))


def noted(name, found):
    """A method's loss, which notes (logits, targets) of each step."""

    before = METHODS[name].loss

    def loss(made, logits, targets):
        found.append((logits.detach().clone(), targets.numpy().copy()))
        return before(made, logits, targets)

    return loss


def outputs(folder):
    return [(folder / name).read_bytes() for name in OUTPUTS]


@pytest.fixture(scope="module")
def known():
    """What undisturbed runs left, so that each kind is run once."""
    return {}


@pytest.fixture
def undisturbed(small, known):
    """undisturbed(**changes) -> what such a run leaves."""

    def expected(*arguments, **changes):
        key = str(changes)
        if key not in known:
            known[key] = outputs(small("undisturbed", *arguments, **changes))
        return known[key]

    return expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_view": "center_crop"},
        {"augmentation": "strong"},
        {"balanced": False},
        {"method": "supervised", "classes": 4},
        {"method": "deepcluster", "schedule": "constant"},
        {"method": "deepcluster", "schedule": "constant", "balanced": False},
        {"method": "random"},
        {"method": "selflabel"},
        {"method": "selflabel", "heads": 3, "heads_at_once": "one"},
        {"method": "uic_balanced_start"},
        {"method": "uic_no_split"},
        {"crop_scale": 0.5},
        {"images": 20},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "uic",
)
def test_a_method_trains_and_the_same_seed_gives_the_same_bytes(small, undisturbed, changes):
    folder = small("one", **changes)
    network, made = checkpoint.load(folder / "checkpoint.safetensors")
    assert not network.training
    images, epochs = getattr(made, "images", 0) or 48, getattr(made, "epochs", 0)
    values = np.load(folder / "labels.npy")
    assert values.shape == (images,)
    assert values.dtype == np.int32
    assert values.max() < made.classes
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == list(range(epochs))
    assert not list(folder.glob("*state*"))
    assert undisturbed(**changes) == outputs(folder)
    if changes:
        assert undisturbed()[0] != outputs(folder)[0], "what the recipe says reaches the weights"
    if epochs:
        start = small("start", method="random", classes=made.classes) / "checkpoint.safetensors"
        initial = dict(checkpoint.load(start)[0].named_parameters())
        stood = [name for name, value in network.named_parameters() if torch.equal(value, initial[name])]
        assert not stood, "every weight is trained"
        assert history[-1]["loss"] < 2 * np.log(made.classes)


@pytest.mark.parametrize("kind", ["uic", "center_crop", "finetune"])
def test_without_balance_every_image_is_seen_once_with_the_label_it_had(small, altered, monkeypatch, kind):
    changes = {
        "uic": {},
        "center_crop": {"label_view": "center_crop"},
        "finetune": {"method": "finetune", "pretrained": "source"},
    }[kind]
    arguments = []
    if kind == "finetune":
        arguments = ["--pretrained", str(small("source", method="random") / "checkpoint.safetensors")]
    snapshots, seen, steps = [], [], []
    name = changes.get("method", "uic")
    order, take = METHODS[name].order, loop.Trainer._take

    def begin(made, epoch, present, groups):
        snapshots.append(present.copy())
        return order(made, epoch, present, groups)

    altered(name, order=begin, loss=noted(name, steps))
    monkeypatch.setattr(
        loop.Trainer, "_take", lambda self, step, *rest: seen.append(step.positions) or take(self, step, *rest)
    )
    folder = small("run", *arguments, balanced=False, **changes)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["coverage"] for line in history] == [1.0, 1.0]
    targets = [asked for _, asked in steps]
    positions, asked = (np.concatenate(arrays).reshape(2, 48) for arrays in (seen, targets))
    for number in range(2):
        assert sorted(positions[number]) == list(range(48))
        assert (snapshots[number][positions[number]] == asked[number]).all()
    assert positions[0].tolist() != positions[1].tolist()
    if kind == "uic":
        assert snapshots[0].tolist() != snapshots[1].tolist(), "labels changed meanwhile"


def test_deepcluster_without_balance_draws_as_its_published_sampler(small, altered, monkeypatch):
    """Clusters of 30, 12, 4, 1 and 1 images: balanced, each would have 8 to 10 of 48 draws."""
    found = np.repeat(np.arange(5), [30, 12, 4, 1, 1]).astype(np.int32)[np.random.default_rng(0).permutation(48)]
    steps = []
    monkeypatch.setattr(deepcluster, "kmeans", lambda *_, **__: found.copy())
    altered("deepcluster", loss=noted("deepcluster", steps))
    small("run", method="deepcluster", schedule="constant", balanced=False, epochs=1)
    draws = np.bincount(np.concatenate([asked for _, asked in steps]), minlength=5)
    assert draws.sum() == 48
    assert draws[0] > 20
    assert draws[3:].max() < 8


def test_another_seed_gives_other_weights(small, undisturbed):
    assert undisturbed()[0] != outputs(small("two", seed=4))[0]


def right(made, logits, targets):
    """A measure: the share of the answers that are right."""
    return {"right": (logits.argmax(1) == targets).float().mean()}


def test_what_a_method_measures_is_averaged_over_the_images_of_an_epoch(small, altered, monkeypatch, capsys):
    """48 images in batches of 20, 20 and 8: the last one counts less."""
    steps = []

    def measures(made, logits, targets):
        assert not logits.requires_grad
        found = right(made, logits, targets)
        steps.append((len(targets), found["right"].item()))
        return found

    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    altered("supervised", measures=measures)
    folder = small("run", method="supervised", classes=4, batch_size=20)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    expected = [sum(size * share for size, share in steps[first : first + 3]) / 48 for first in (0, 3)]
    assert [size for size, _ in steps] == [20, 20, 8] * 2
    assert [line["right"] for line in history] == pytest.approx(expected, abs=1e-6)
    assert 0 < expected[1] < 1
    assert json.loads((folder / "training.json").read_text())["last"] == history[-1]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("right")] == pytest.approx(expected)
    share = (steps[0][1] + steps[1][1]) / 2
    assert re.search(rf"epoch 1/2  step 2/3  loss \d\.\d+  right {share:.4f}  ", capsys.readouterr().out)


def test_what_was_measured_before_an_interruption_counts(small, altered, capsys):
    """And a state of a version that measured nothing goes on as well."""
    told = []

    def tell(*given):
        told.append(1)
        if len(told) == 4:  # in the second epoch, which goes on for another step
            os.kill(os.getpid(), signal.SIGUSR1)
        return right(*given)

    changes = {"method": "supervised", "classes": 4}
    altered("supervised", measures=right)
    expected = outputs(small("undisturbed", **changes))
    altered("supervised", measures=tell)
    with pytest.raises(SystemExit):
        small("run", **changes)
    assert outputs(small("run", **changes)) == expected
    assert "going on from epoch 2, step 3" in capsys.readouterr().out


def test_a_state_from_before_methods_measured_goes_on(small, undisturbed, altered, tmp_path):
    steps = []

    def tell(*given):
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return {}

    altered("uic", measures=tell)
    with pytest.raises(SystemExit):
        small("run")
    (state,) = (path for path in (tmp_path / "run").glob("state.*") if ".previous." not in path.name)
    with safetensors.safe_open(state, framework="pt") as file:
        content = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert content["position"].pop("measured") == {}
    safetensors.torch.save_file(tensors, state, metadata={"state": json.dumps(content)})
    assert outputs(small("run")) == undisturbed()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_nesterovs_momentum_looks_a_step_ahead(small, altered, monkeypatch, momentum):
    """By hand, of the top layer's bias: w ← w - lr (g + m v) with v ← m v + g; g with weight decay."""
    seen, send = [], loop.Trainer._send

    def watch(trainer, *given):
        bias = trainer.network.top.bias
        seen.append((bias.detach().clone(), bias.grad.clone()))
        return send(trainer, *given)

    monkeypatch.setattr(loop.Trainer, "_send", watch)
    altered("supervised", nesterov=True)
    small("run", method="supervised", classes=4, epochs=1, momentum=momentum, weight_decay=0.01)
    value, speed = torch.zeros(4), torch.zeros(4)
    assert len(seen) == 3
    for after, gradient in seen:
        gradient = gradient + 0.01 * value
        speed = momentum * speed + gradient
        value = value - 0.01 * (gradient + momentum * speed)
        torch.testing.assert_close(after, value)


def test_uic_labels_are_the_argmax_of_the_training_forward(small, altered, monkeypatch):
    """One epoch: every drawn image has the argmax of its last forward, every other the split initial draw."""
    seen, started = {}, []
    take, split = loop.Trainer._take, METHODS["uic"].fill_empty

    def watch(trainer, step, *arguments):
        assert trainer.network.training, "train-mode BN, dropout active"
        seen.update(zip(step.positions.tolist(), step.predictions.tolist(), strict=True))
        return take(trainer, step, *arguments)

    def note(groups, values):
        split(groups, values)
        started.append(values.copy())

    monkeypatch.setattr(loop.Trainer, "_take", watch)
    altered("uic", fill_empty=note)
    values = np.load(small("run", epochs=1) / "labels.npy")
    assert 0 < len(seen) < 48, "with balanced sampling some images are not drawn"
    expected = started[0].copy()
    for position, label in seen.items():
        expected[position] = label
    assert values.tolist() == expected.tolist()


def test_predictions_are_those_of_the_forward_that_is_learned_from(small, altered, monkeypatch):
    """What `_take` gets is the argmax of the very logits of which the loss was taken."""
    steps, found = [], []
    take = loop.Trainer._take
    altered("uic", loss=noted("uic", steps))
    monkeypatch.setattr(loop.Trainer, "_take", lambda self, step, *rest: found.append(step) or take(self, step, *rest))
    small("run", epochs=1)
    assert len(found) == len(steps) == 3
    for step, (logits, _) in zip(found, steps, strict=True):
        assert step.predictions.tolist() == logits.argmax(1).tolist()


def test_deepclusters_top_layer_is_new_each_epoch_and_has_no_momentum(small, altered, monkeypatch):
    tops, momenta = [], []
    renew, epoch = METHODS["deepcluster"].start_epoch, loop.Trainer._steps

    def note(made, number, top):
        renew(made, number, top)
        tops.append(top.weight.detach().clone())
        assert not top.bias.any()

    def begin(trainer, *rest):
        momenta.append([group["momentum"] for group in trainer.optimizer.param_groups])
        epoch(trainer, *rest)

    altered("deepcluster", start_epoch=note)
    monkeypatch.setattr(loop.Trainer, "_steps", begin)
    small("run", method="deepcluster", schedule="constant")
    small("other")
    assert momenta == [[0.9, 0.0]] * 2 + [[0.9, 0.9]] * 2
    assert len(tops) == 2
    assert not torch.equal(*tops)
    assert all(abs(top.std() - 0.01) < 5e-4 for top in tops)


def test_finetune_keeps_the_labels_of_a_centre_crop_pass_and_the_top_layer(small, demo_data, tmp_path):
    """Labels by hand: the argmax in eval mode on the centre crops, by a network that tells the images apart."""
    network, made = checkpoint.load(small("source") / "checkpoint.safetensors")
    index = build_folder(demo_data.imagenet, "train", "imagenet")
    files = [index.file(position) for position in range(48)]
    crops = torch.stack([torch.from_numpy(reader.center_crop(reader.read_rgb(file), 73, 64)) for file in files])
    with torch.no_grad():
        logits = network(normalize(crops))
        network.top.bias -= logits.mean(0)
    expected = (logits - logits.mean(0)).argmax(1).tolist()
    assert len(set(expected)) > 2
    checkpoint.save(tmp_path / "source.safetensors", network, made, {})
    folder = small(
        "tuned", "--pretrained", str(tmp_path / "source.safetensors"),
        method="finetune", pretrained="source", epochs=2, lr=1e-9, weight_decay=0.0,
    )  # fmt: skip
    assert np.load(folder / "labels.npy").tolist() == expected
    after, _ = checkpoint.load(folder / "checkpoint.safetensors")
    torch.testing.assert_close(after.top.weight, network.top.weight)
    torch.testing.assert_close(after.top.bias, network.top.bias)
    assert finetune.main is main


@pytest.mark.parametrize(
    ("schedule", "expected"), [("linear", [1, 0.75, 0.5, 0.25]), ("constant", [1] * 4), ("cosine", None)]
)
def test_schedules_by_hand(small, tmp_path, schedule, expected):
    made = recipe(epochs=4, lr=1.0, schedule=schedule)
    rates = [made.learning_rate(epoch) for epoch in range(4)]
    assert rates == pytest.approx(expected or [1, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5])


def test_steps_by_hand():
    values = recipe(epochs=6, lr=0.08).model_dump(exclude={"schedule", "label_view", "balanced", "labels_from"})
    made = Stepped(**values, lr_steps=[2, 4, 5])
    rates = [made.learning_rate(epoch) for epoch in range(6)]
    assert rates == pytest.approx([0.08, 0.08, 0.008, 0.008, 0.0008, 0.00008])
    for steps in ([0], [3, 2], [2, 2]):
        with pytest.raises(ValueError, match=r"lr_steps: .* must rise and start at 1 or later"):
            Stepped(**values, lr_steps=steps)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (7, 0)),
        ({"label_view": "center_crop"}, (7, 6)),  # the first epoch keeps the labels that were drawn
        ({"label_view": "center_crop", "labels_from": 3}, (7, 4)),
        ({"method": "finetune"}, (7, 1)),
        ({"method": "deepcluster", "schedule": "constant"}, (7, 7)),
        ({"method": "supervised"}, (7, 0)),
        ({"method": "random"}, (0, 0)),
    ],
)
def test_a_run_costs_its_passes(changes, expected):
    made = recipe(epochs=7, **changes)
    assert METHODS[made.method].passes(made) == expected


@pytest.mark.parametrize("view", ["training", "center_crop"])
def test_the_first_epochs_can_keep_the_drawn_labels(small, demo_data, view):
    """With `labels_from: 2` the second epoch trains on them once more, and the third on the network's own."""
    told = {}
    for start in (None, 2):
        folder = small(f"from_{start}", epochs=3, label_view=view, labels_from=start)
        told[start] = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    annotated = build_folder(demo_data.imagenet, "train", "imagenet").labels
    drawn = partition.nmi(partition.group(draw_initial(48, 5, 3), 5), annotated)
    own, later = ([line["nmi_annotated"] for line in told[start]] for start in (None, 2))
    kept = 1 if view == "training" else 2  # the history has the labels that an epoch makes, or those it trains on
    assert later[:kept] == pytest.approx([drawn] * kept, abs=1e-6)
    assert [line["nmi_previous"] for line in told[2][:kept]] == [1.0] * kept
    assert told[2][kept]["nmi_previous"] < 1
    assert told[2][0]["loss"] == told[None][0]["loss"]
    assert told[2][1]["loss"] != told[None][1]["loss"]
    assert own != later


def test_labels_from_lies_within_the_epochs():
    with pytest.raises(InputError, match=r"labels_from: 7 must be less than epochs, 7"):
        recipe(epochs=7, labels_from=7)
    assert "labels_from" not in recipe().written(), "a key that is left out changes no hash"


def test_finetune_draws_other_members_of_large_classes_each_epoch(small, altered):
    """Two of 30 classes are larger than the slots a class has; without regrouping each epoch would show the same."""
    values = np.r_[np.zeros(12), np.ones(8), np.arange(2, 30)].astype(np.int32)
    seen: list[set[int]] = []
    order = METHODS["finetune"].order

    def note(made, epoch, present, groups):
        found = order(made, epoch, present, groups)
        drawn, targets = found.draw(0, 48)
        assert (values[drawn % 48] == targets).all()
        seen.append(set((drawn[targets == 0] % 48).tolist()))
        assert len(seen[-1]) <= 2, "slots of a class"
        return found

    altered("finetune", first_labels=lambda *_: values, order=note)
    source = small("source", method="random", classes=30) / "checkpoint.safetensors"
    folder = small("tuned", "--pretrained", str(source), method="finetune", pretrained="source", epochs=6, classes=30)
    assert len(set.union(*seen)) > 4
    assert np.load(folder / "labels.npy").tolist() == values.tolist()
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["nmi_previous"] for line in history] == [1.0] * 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"label_view": "center_crop"}, [0, 3]), ({"method": "deepcluster", "schedule": "constant"}, [3, 3])],
    ids=["center_crop", "deepcluster"],
)
def test_empty_classes_are_those_of_the_epochs_own_labels(small, monkeypatch, changes, expected):
    """Before they are split: the pass that makes the labels finds two of the five classes."""
    found = (np.arange(48) % 2).astype(np.int32)
    monkeypatch.setattr(label_passes.LabelPasses, "predict", lambda self: found.copy())
    monkeypatch.setattr(deepcluster, "kmeans", lambda *_, **__: found.copy())
    folder = small("run", **changes)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["empty_classes"] for line in history] == expected


PASSES = {
    "center_crop": ({"label_view": "center_crop"}, "epoch 2, step 1"),
    "deepcluster": ({"method": "deepcluster", "schedule": "constant"}, "epoch 2, step 1"),
    "finetune": ({"method": "finetune", "pretrained": "source"}, ""),  # before anything can be saved
}


@pytest.mark.parametrize("kind", PASSES)
def test_told_to_end_in_a_pass_over_all_images_it_goes_on_with_the_same_bytes(
    small, undisturbed, monkeypatch, capsys, kind
):
    changes, position = PASSES[kind]
    arguments = []
    if kind == "finetune":
        arguments = ["--pretrained", str(small("source", method="random") / "checkpoint.safetensors")]
    expected = undisturbed(*arguments, **changes)
    normalize, batches = label_passes.normalize, []

    def tell(crops):
        """Only these passes normalise without augmentation. Three batches each; told in the second of the last."""
        batches.append(len(crops))
        if len(batches) == (5 if kind == "deepcluster" else 2):
            os.kill(os.getpid(), signal.SIGUSR1)
        return normalize(crops)

    monkeypatch.setattr(label_passes, "normalize", tell)
    with pytest.raises(SystemExit) as stop:
        small("run", *arguments, **changes)
    assert stop.value.code == INTERRUPTED
    assert len(batches) % 3 == 2, "it ends at the next batch"
    said = f"saved before {position}" if position else "in the making of labels before epoch 1, step 1, which begins"
    assert re.search(f"interrupted: SIGUSR1,? {said}", capsys.readouterr().err)
    folder = small("run", *arguments, **changes)
    assert (f"going on from {position}" in capsys.readouterr().out) == bool(position)
    assert outputs(folder) == expected


def test_fault_41_labels_that_take_longer_than_the_limit_are_not_queued_for_ever(
    small, tmp_path, monkeypatch, capsys, seen
):
    """The attempt that trained an epoch goes back into the queue; the next, which only makes its labels, does not."""
    changes, asks = {"label_view": "center_crop"}, tmp_path / "asks"
    expected, normalize = outputs(small("undisturbed", **changes)), label_passes.normalize
    monkeypatch.setenv("UIC_SAVED", str(asks))

    def tell(crops):
        os.kill(os.getpid(), signal.SIGUSR1)
        return normalize(crops)

    for queued in (True, False):
        asks.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(label_passes, "normalize", tell)
            with pytest.raises(SystemExit) as stop:
                small("run", **changes)
        assert stop.value.code == INTERRUPTED
        assert asks.exists() == queued
    err = capsys.readouterr().err.splitlines()[-1]
    seen(err)
    assert err.startswith("interrupted: SIGUSR1 in the making of labels before epoch 2, step 1, which begins anew")
    assert outputs(small("run", **changes)) == expected


@pytest.mark.parametrize(
    ("owner", "name"),
    [(deepcluster, "whiten"), (faiss.Kmeans, "train"), (kmeans, "whitened"), (kmeans, "splits")],
    ids=["faiss-whiten", "faiss-kmeans", "torch-whiten", "torch-kmeans"],
)
def test_told_to_end_while_it_clusters_it_saves_and_goes_on_with_the_same_bytes(
    small, monkeypatch, capsys, owner, name
):
    """After the PCA, and after an iteration of k-means: on ImageNet these take minutes."""
    if owner is kmeans:  # without the 4,096 eigenvectors, which take half a minute of a CPU
        monkeypatch.setattr(deepcluster, "by_faiss", deepcluster.by_torch)
        monkeypatch.setattr(kmeans, "whitened", lambda features, images, dimension, *_: features[:, :dimension])
    changes = {"method": "deepcluster", "schedule": "constant"}
    expected, calls = outputs(small("undisturbed", **changes)), []
    work = getattr(owner, name)

    def tell(*given, **named):
        found = work(*given, **named)
        calls.append(name)
        os.kill(os.getpid(), signal.SIGUSR1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, tell)
        with pytest.raises(SystemExit) as stop:
            small("run", **changes)
    assert stop.value.code == INTERRUPTED
    assert len(calls) == 1
    assert "SIGUSR1, saved before epoch 1, step 1" in capsys.readouterr().err
    assert outputs(small("run", **changes)) == expected


def test_the_history_grows_while_the_run_does(small, altered, tmp_path):
    """A run one can watch: after each epoch the file holds its line."""
    lines, order = [], METHODS["uic"].order

    def look(*given):
        file = tmp_path / "run" / "history.jsonl"
        lines.append(len(file.read_text().splitlines()) if file.exists() else 0)
        return order(*given)

    altered("uic", order=look)
    small("run")
    assert lines == [0, 1]


def test_a_gradient_that_is_not_finite_stops_and_keeps_the_last_good_state(
    small, undisturbed, altered, monkeypatch, capsys, tmp_path
):
    """The loss of a step is finite, its gradient is not: the next loss names the step, weights of it are not saved."""
    expected = undisturbed()
    loss, steps = METHODS["uic"].loss, []

    def overflow(made, logits, targets):
        steps.append(len(targets))
        found = loss(made, logits, targets)
        return found if len(steps) < 5 else found + 0 * torch.sqrt(logits.sum() * 0)  # d sqrt(0) is infinite

    monkeypatch.setattr(saved_state, "EPOCH_SECONDS", 0)
    altered("uic", loss=overflow)
    with pytest.raises(SystemExit) as stop:
        small("run")
    altered("uic", loss=loss)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "epoch 2, step 3: the loss is nan" in said
    assert "the last good state is kept, no checkpoint is written" in said
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    folder = small("run")
    assert "going on from epoch 2, step 1" in capsys.readouterr().out
    assert outputs(folder) == expected


def test_a_loss_that_is_not_finite_stops_and_names_the_step(small, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        small("run", lr=1e30)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "epoch 1, step " in said
    assert "lower lr in the recipe" in said
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_fault_67_numbers_of_a_pretraining_that_did_not_diverge_are_not_marked(small, capsys):
    assert checkpoint.of_run("run", small("run", epochs=1) / "checkpoint.safetensors")[2].remark == ""
    assert "diverged" not in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{}, {"method": "rotnet", "classes": 4}], ids=["uic", "rotnet"])
def test_fault_67_numbers_of_a_pretraining_that_diverged_are_marked(small, capsys, tmp_path, seen, changes):
    """Also if the loss exploded within the first epoch, whose mean is high then."""
    folder = small("wild", lr=1.0, epochs=1, **changes)
    origin = checkpoint.of_run("wild", folder / "checkpoint.safetensors")[2]
    told = re.fullmatch(
        r"pretraining (diverged: the training loss ended at [\de+,.]+, a guess has 1\.[46]; lr 1)", origin.remark
    )
    seen(origin.remark)
    assert f"{told[1]}; lower lr in the recipe\n" in capsys.readouterr().out
    values = {"map": metrics.Value(value=1.0, unit="%"), "loud": metrics.Value(value=1.0, unit="%", remark="loud")}
    data = metrics.Dataset(name="d", fingerprint="f", sizes={})
    metrics.record(tmp_path / "m.json", "knn", origin, dataset=data, values=values, protocol={}, seed=0)
    found = metrics.read(tmp_path / "m.json").values
    assert [value.remark for value in found.values()] == [origin.remark, f"{origin.remark}; loud"]


def test_fault_67_a_run_that_starts_from_one_that_diverged_says_so(small, seen):
    source = str(small("wild", lr=1.0, epochs=1) / "checkpoint.safetensors")
    folder = small("further", "--pretrained", source, method="finetune", pretrained="wild", lr=1e-9, epochs=1)
    remark = checkpoint.of_run("further", folder / "checkpoint.safetensors")[2].remark
    seen(remark)
    assert remark.startswith("it starts from run wild: pretraining diverged: the training loss ended at ")


def test_weights_that_are_not_finite_are_not_saved(small, tmp_path, capsys, monkeypatch):
    take = loop.Trainer._take

    def poison(self, step, *rest):
        requests = take(self, step, *rest)
        if step.number == 2:
            self.network.top.bias.data[0] = float("nan")
        return requests

    monkeypatch.setattr(loop.Trainer, "_take", poison)
    monkeypatch.setattr(saved_state, "EPOCH_SECONDS", 0)
    with pytest.raises(SystemExit) as stop:
        small("run", epochs=2)
    assert stop.value.code == 2
    assert "before epoch 2, step 1: network.top.bias is not finite, the training diverged" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*state*"))


def test_tensorboard_shows_what_the_history_holds(small):
    folder = small("run")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for key in ("loss", "nmi_previous", "empty_classes", "coverage"):
        assert [event.value for event in events.Scalars(key)] == pytest.approx([line[key] for line in history])
    assert events.Scalars("images_per_second")[0].value > 0


def test_pretrained_is_demanded_by_finetune_alone(small, capsys):
    source = str(small("source", method="random") / "checkpoint.safetensors")
    with pytest.raises(SystemExit):
        small("run", method="finetune", pretrained="x")
    assert "recipe.yaml starts from run 'x', give its checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        small("run", "--pretrained", source)
    assert "--pretrained: method 'uic' of " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 49}, "classes: 49 for the 48 images of imagenet_train; lower classes"),
        ({"images": 4}, "classes: 5 for the 4 images"),
        ({"images": 49}, "49 images wanted, the index has 48"),
        ({"method": "supervised"}, "imagenet_train: classes: 5, but the data set has 4 annotated classes"),
    ],
)
def test_a_recipe_that_does_not_fit_the_images_is_refused(small, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        small("run", **changes)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pretrained_checkpoint_of_another_shape_is_refused(small, capsys):
    source = small("source", method="random") / "checkpoint.safetensors"
    with pytest.raises(SystemExit):
        small("tuned", "--pretrained", str(source), method="finetune", pretrained="source", epochs=1, classes=6)
    assert f"{source}: classes is 5, but " in capsys.readouterr().err


def test_an_unreadable_image_is_named(small, demo_data, tmp_path, capsys):
    folder = tmp_path / "imagenet"
    shutil.copytree(demo_data.imagenet, folder)
    small("run", method="random")  # writes the index
    index = build_folder(folder, "train", "imagenet")
    index.file(7).write_bytes(b"no image")
    index.save(tmp_path / "broken.npz")
    path = tmp_path / "recipe.yaml"
    save(recipe(method="supervised", classes=4, epochs=1), path)
    with pytest.raises(SystemExit) as stop:
        main(["--recipe", str(path), "--train-index", str(tmp_path / "broken.npz"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert str(index.file(7)) in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_epochs_longer_than_a_minute_say_lines_where_there_is_no_terminal(small, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    small("run", epochs=1)
    assert "epoch 1/1  step 2/3  loss " in capsys.readouterr().out


def test_kmeans_finds_planted_clusters():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(6), 50)
    features = (np.eye(6)[truth] * 9 + rng.normal(size=(300, 6))).astype(np.float32)
    found = deepcluster.kmeans(deepcluster.whiten(features, 5), 6, 20, seed=0)
    assert partition.nmi(partition.group(found, 6), truth) > 0.95


def test_kmeans_in_single_iterations_is_faiss_own():
    rows = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    rows[:80] = rows[0]  # classes run empty
    known = faiss.Kmeans(8, 90, niter=7, seed=5, min_points_per_centroid=1, max_points_per_centroid=10**7)
    known.train(rows)
    rounds = []
    found = deepcluster.kmeans(rows, 90, 7, 5, after=lambda: rounds.append(1))
    assert found.tolist() == known.index.search(rows, 1)[1].ravel().tolist()
    assert len(rounds) == 7


def test_clustering_takes_the_jobs_threads_and_gives_them_back():
    before = torch.get_num_threads()
    with deepcluster.threads(before + 2):
        assert faiss.omp_get_max_threads() == before + 2
    with deepcluster.threads(1):
        assert faiss.omp_get_max_threads() == before
    assert torch.get_num_threads() == before


def test_whitened_features_are_uncorrelated_before_they_are_normalised():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(2000, 8)) @ rng.normal(size=(8, 8))).astype(np.float32)
    white = deepcluster.whiten(features, 4)
    assert white.shape == (2000, 4)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, rtol=1e-5)
    covariance = np.cov(white.T)
    np.testing.assert_allclose(covariance, np.eye(4) * covariance[0, 0], atol=0.03)


@pytest.mark.parametrize(("images", "dead"), [(48, 0), (48, 60), (500, 60)])
def test_directions_without_variance_are_left_out_of_the_whitening(images, dead):
    features = np.random.default_rng(0).normal(size=(images, 64)).astype(np.float32)
    features[:, :dead] = 0
    white = deepcluster.whiten(features, 64)
    assert white.shape == (images, min(images - 1, 64 - dead))
    assert np.isfinite(white).all()
