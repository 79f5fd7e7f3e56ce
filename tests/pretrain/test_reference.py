"""Training held against one plain loop, which knows the paper's rules and nothing of the suite's loop.

Crops and augmentation are torchvision's; the network, the loss, SGD, and the rules for labels and order are written out
from protocol.md, Networks and Pretraining. The suite's are random numbers and permutations, held by test_randomness.py,
test_order.py and test_labels.py, and k-means, held by test_pretrain.py.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from tests import recipes
from tests.methods.test_sinkhorn import transcribed
from uic_core.data import partition
from uic_core.data.index import Index, build_folder
from uic_core.methods import deepcluster
from uic_core.methods.order import Permutation
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.pretrain.loop import Trainer
from uic_core.recipe import Training
from uic_core.run.parallel import ALONE
from uic_core.run.randomness import uniforms

IMAGES, ANNOTATED, SIDE, SHORTER = 15, 4, 64, 72
SOBEL = torch.tensor([[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]])[:, None]
CONVS = [(4, 2, True), (1, 2, True), (1, 1, False), (1, 1, False), (1, 1, True)]  # stride, padding, max-pooling 3/2
COLOURS = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]

CASES: dict[str, dict[str, Any]] = {
    "uic": {"schedule": "linear", "augmentation": "strong"},
    "uic_center_crop": {"schedule": "cosine", "label_view": "center_crop", "crop_scale": 0.4},
    "uic_no_split": {"schedule": "linear", "method": "uic_no_split"},
    "finetune": {"schedule": "linear", "method": "finetune", "augmentation": "strong"},
    "deepcluster": {"schedule": "cosine", "method": "deepcluster"},
    "supervised": {"schedule": "cosine", "method": "supervised", "classes": ANNOTATED, "sobel": False},
    # labels before steps 1 and 3 of the first epoch, and before step 3 of the second
    "selflabel": {"method": "selflabel", "augmentation": "selflabel", "sobel": False, "optimisations": 4},
}


def recipe(**changes: Any) -> Any:
    settings = {
        "classes": 7, "image_size": SIDE, "resize": SHORTER, "batch_size": 6, "lr": 0.0001, "weight_decay": 0.02,
        "pca": 6,
    }  # fmt: skip
    return recipes.recipe(**settings | changes)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """15 smooth pictures of 72 pixels by 72 or more, so that a centre crop needs no resizing."""
    folder = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / "train" / f"class_{number % ANNOTATED}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (6, 7, 3), np.uint8))
        coarse.resize((SHORTER + 2 * number, SHORTER), Image.Resampling.BICUBIC).save(path)
    return build_folder(folder, "train", "imagenet")


def alexnet(w: dict[str, Tensor], x: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
    """Logits of normalised images, and the features that DeepCluster clusters: fc7's, without their ReLU."""
    x = x.contiguous(memory_format=torch.channels_last)  # rounds as the suite's
    if w["features.conv1.weight"].shape[1] == 2:
        x = F.conv2d(x.mean(1, keepdim=True), SOBEL, padding=1)
    for number, (stride, padding, pooled) in enumerate(CONVS, 1):
        x = F.conv2d(x, *(w[f"features.conv{number}.{part}"] for part in ("weight", "bias")), stride, padding)
        norm = [w[f"features.bn{number}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu(F.batch_norm(x, *norm, training=training))
        x = F.max_pool2d(x, 3, 2) if pooled else x
    x = F.dropout(x.flatten(1), 0.5, training)
    x = F.relu(F.linear(x, w["classifier.fc6.weight"], w["classifier.fc6.bias"]))
    x = F.dropout(x, 0.5, training)
    features = F.linear(x, w["classifier.fc7.weight"], w["classifier.fc7.bias"])
    return F.linear(F.relu(features), w["top.weight"], w["top.bias"]), features


def normalised(image: Tensor) -> Tensor:
    """float [3, h, w] in [0, 1], by ImageNet's mean and deviation."""
    return tv.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def pictures_of(index: Index) -> list[Tensor]:
    """uint8 [3, h, w] each."""
    return [torch.from_numpy(np.array(Image.open(index.file(n))).transpose(2, 0, 1)) for n in range(IMAGES)]


def centres(index: Index) -> Tensor:
    """The centre crops of all pictures, normalised."""
    return torch.stack([normalised(tv.center_crop(picture, [SIDE, SIDE]) / 255) for picture in pictures_of(index)])


def training_view(
    picture: Tensor, place: NDArray[np.float64], u: NDArray[np.float64], augmentation: str, smallest: float
) -> Tensor:
    """RandomResizedCrop and flip; strong: then jitter (.8, .8, .8, .2) p .8, grey p .2, blur p .5 sigma U(.1, 2).

    selflabel: grey p .2, jitter (.4, .4, .4, .4).
    """
    height, width = picture.shape[1:]
    for area, shape in place[:20].reshape(10, 2):  # ten attempts; one fits each of these pictures
        pixels, ratio = (
            width * height * (smallest + (1 - smallest) * area),
            math.exp(math.log(3 / 4) + math.log(16 / 9) * shape),
        )
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if w <= width and h <= height:
            break
    left, top = int(place[20] * (width - w + 1)), int(place[21] * (height - h + 1))
    image = tv.resized_crop(picture, top, left, h, w, [SIDE, SIDE], antialias=True)
    image = (tv.hflip(image) if u[0] < 0.5 else image).float() / 255
    if augmentation == "strong":
        factors = [0.2 + 1.6 * u[2], 0.2 + 1.6 * u[3], 0.2 + 1.6 * u[4], -0.2 + 0.4 * u[5]]
        for operation in list(itertools.permutations(range(4)))[int(24 * u[6])] if u[1] < 0.8 else ():
            image = COLOURS[operation](image, factors[operation])
        image = tv.rgb_to_grayscale(image, 3) if u[7] < 0.2 else image
        image = tv.gaussian_blur(image, [7, 7], [0.1 + 1.9 * u[9]] * 2) if u[8] < 0.5 else image  # 23 at 224
    if augmentation == "selflabel":
        image = tv.rgb_to_grayscale(image, 3) if u[7] < 0.2 else image
        factors = [*(0.6 + 0.8 * u[2:5]), -0.4 + 0.8 * u[5]]
        for operation in list(itertools.permutations(range(4)))[int(24 * u[6])]:
            image = COLOURS[operation](image, factors[operation])
    return normalised(image)


def split(members: list[list[int]]) -> None:
    """Section 2, step 2: each empty class takes the second half of the largest."""
    for number in range(len(members)):
        if not members[number]:
            largest = max(members, key=len)
            largest[:], members[number] = largest[: len(largest) // 2], largest[len(largest) // 2 :]


def balanced(members: list[list[int]], seed: int, epoch: int) -> list[tuple[int, int]]:
    """Section 2, step 3: (image, which view of it); with replacement where a class has no more members than slots."""
    filled = [group for group in members if group]
    slots = IMAGES // len(filled) + 1
    drawn: list[tuple[int, int]] = []
    for place, group in enumerate(filled):
        u = uniforms(seed + (1 << 33), epoch, place * slots + np.arange(slots), 1)[:, 0]
        with_replacement = len(group) <= slots
        for slot in range(slots):
            image = group[int(u[slot] * len(group))] if with_replacement else group[slot]
            drawn.append((image, slot if with_replacement else 0))
    places = Permutation(len(drawn), seed, epoch)(np.arange(IMAGES))
    return [drawn[place] for place in places]


def whitened(features: Tensor, dimension: int) -> NDArray[np.float32]:
    """The first principal components, each of variance 1; then rows of length 1."""
    centred = features.double() - features.double().mean(0)
    components = torch.linalg.svd(centred, full_matrices=False)[0][:, :dimension]
    return F.normalize(components).float().numpy()


def views(recipe: Training, pictures: list[Tensor], draws: NDArray[np.int64], seed: int, number: int) -> Tensor:
    """Training views of draws, in an epoch or a pass of this number."""
    both = uniforms(seed + (1 << 32), number, draws, 22), uniforms(seed, number, draws, 10)
    made = zip(draws % IMAGES, *both, strict=True)
    smallest = recipe.crop_scale or 0.08
    return torch.stack([training_view(pictures[n], place, u, recipe.augmentation, smallest) for n, place, u in made])


def seeded(*entropy: int) -> None:
    """Seed dropout."""
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


def transported(recipe: Any, pictures: list[Tensor], w: dict[str, Tensor], number: int) -> list[int]:
    """SelfLabel's labels: a pass in train mode in an order of its own, and Sinkhorn-Knopp in float64."""
    seed, logits = recipe.seed + (1 << 34), torch.zeros(IMAGES, recipe.classes)
    order = Permutation(IMAGES, seed, number)(np.arange(IMAGES))
    for batch, first in enumerate(range(0, IMAGES, recipe.batch_size)):
        chosen = order[first : first + recipe.batch_size]
        seeded(recipe.seed, 6, number, batch, 0)
        with torch.no_grad():
            logits[chosen] = alexnet(w, views(recipe, pictures, chosen, seed, number), training=True)[0]
    return transcribed(logits.numpy(), recipe.sharpness, recipe.tolerance)[0].tolist()


def grouped(values: list[int], recipe: Training, epoch: int) -> list[list[int]]:
    """Each class's members, in the suite's random order."""
    rng = np.random.default_rng([recipe.seed, 1, epoch])
    groups = partition.group(np.array(values, np.int32), recipe.classes, rng)
    return [groups.of(number).tolist() for number in range(recipe.classes)]


def nmi(one: list[int], other: list[int]) -> float:
    return float(normalized_mutual_info_score(one, other, average_method="geometric"))


def train(recipe: Training, index: Index, w: dict[str, Tensor]) -> tuple[list[int], list[dict[str, Any]]]:
    """Train the tensors `w` of a state dict in place; the labels after the last epoch, and the history."""
    pictures, middle = pictures_of(index), centres(index)
    trained = [name for name in w if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    speed = {name: torch.zeros_like(w[name]) for name in trained}
    annotated, history = index.labels.tolist(), []
    learns = recipe.method.startswith("uic") and getattr(recipe, "label_view", "") == "training"
    values: list[int] = (
        np.random.default_rng([recipe.seed, 5]).integers(recipe.classes, size=IMAGES, dtype=np.int32).tolist()
    )
    if recipe.method == "supervised":
        values = annotated
    if recipe.method == "selflabel":
        rng = np.random.default_rng([recipe.seed, 7, 0])
        values = rng.permutation([n % recipe.classes for n in range(IMAGES)]).tolist()
    if recipe.method == "finetune":
        values = alexnet(w, middle, training=False)[0].argmax(1).tolist()

    agreement = 1.0
    for epoch in range(recipe.epochs):
        before = values
        if getattr(recipe, "label_view", "") == "center_crop" and epoch:
            values = alexnet(w, middle, training=False)[0].argmax(1).tolist()
        if recipe.method == "deepcluster":
            features = whitened(alexnet(w, middle, training=False)[1], recipe.pca)
            seed = int(np.random.default_rng([recipe.seed, 4, epoch]).integers(2**31))
            values = deepcluster.kmeans(features, recipe.classes, recipe.kmeans_iterations, seed).tolist()
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
            w["top.weight"] = 0.01 * torch.randn(w["top.weight"].shape, generator=generator)
            w["top.bias"] = torch.zeros(recipe.classes)
        if recipe.method != "selflabel":
            agreement = nmi(before, values)
        members = grouped(values, recipe, epoch)
        empty = sum(not group for group in members)
        if recipe.method == "uic":
            split(members)
        targets = [next(number for number, group in enumerate(members) if n in group) for n in range(IMAGES)]
        if recipe.method in ("supervised", "selflabel"):
            draws = [(n, 0) for n in Permutation(IMAGES, recipe.seed, epoch)(np.arange(IMAGES)).tolist()]
        else:
            draws = balanced(members, recipe.seed, epoch)
        done = epoch / recipe.epochs
        if recipe.method == "selflabel":
            lr = recipe.lr / 10**epoch
        else:
            lr = recipe.lr * (1 - done if recipe.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)

        values, losses = list(targets), []
        for step, first in enumerate(range(0, IMAGES, recipe.batch_size)):
            if recipe.method == "selflabel" and (epoch, step) in [(0, 0), (0, 2), (1, 2)]:
                targets, before = transported(recipe, pictures, w, 3 * epoch + step), targets
                agreement, values = nmi(before, targets), list(targets)
                empty = recipe.classes - len(set(targets))
            batch = draws[first : first + recipe.batch_size]
            x = views(recipe, pictures, np.array([n + IMAGES * view for n, view in batch]), recipe.seed, epoch)
            seeded(recipe.seed, 3, epoch, step, 0)
            for name in trained:
                w[name].requires_grad_(True)
            logits = alexnet(w, x, training=True)[0]
            target = torch.tensor([targets[n] for n, _ in batch])
            loss = -logits.log_softmax(1)[torch.arange(len(batch)), target].mean()
            gradients = torch.autograd.grad(loss, [w[name] for name in trained])
            for name, gradient in zip(trained, gradients, strict=True):
                value = w[name].detach()
                momentum = 0 if recipe.method == "deepcluster" and name.startswith("top.") else recipe.momentum
                speed[name].mul_(momentum).add_(gradient).add_(value, alpha=recipe.weight_decay)
                w[name] = value.sub_(speed[name], alpha=lr)
            losses += [loss.item()] * len(batch)
            if learns:
                for (n, _), label in zip(batch, logits.argmax(1).tolist(), strict=True):
                    values[n] = label
        if learns:
            agreement = nmi(targets, values)
        history.append({
            "epoch": epoch, "loss": np.mean(losses), "lr": lr, "nmi_previous": agreement,
            "nmi_annotated": nmi(values, annotated), "empty_classes": empty,
            "coverage": len({n for n, _ in draws}) / IMAGES,
        })  # fmt: skip
    return values, history


def begun(settings: Training, index: Index) -> Network:
    """A network as if trained before: its BN has statistics, and its predictions for the centre crops differ."""
    torch.manual_seed(1)
    network = build("alexnet", classes=settings.classes, image_size=SIDE, sobel=settings.sobel)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        network(centres(index))
        for norm in norms:
            norm.momentum = 0.1
        network.top.bias -= network.eval()(centres(index)).mean(0)
    return network


@pytest.mark.parametrize("case", CASES)
def test_training_equals_the_plain_loop(index: Index, tmp_path: Path, case: str) -> None:
    settings = recipe(**CASES[case])
    network = begun(settings, index)
    start = copy.deepcopy(network.state_dict())
    trainer = Trainer(settings, index, network, None, ALONE, 0, math.inf)
    trainer.run(tmp_path)
    expected = copy.deepcopy(start)
    values, history = train(settings, index, expected)

    assert np.load(tmp_path / "labels.npy").tolist() == values
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == [pytest.approx(line, rel=2e-5, abs=1e-6) for line in history]
    for name, value in trainer.network.state_dict().items():
        if name.endswith("num_batches_tracked") or re.search(r"conv\d\.bias", name):
            continue  # BN takes a convolution's bias out again: only rounding moves it
        off, moved = (value - expected[name]).norm(), (expected[name] - start[name]).norm()
        # Where rounding tips a ReLU or a maximum over, a gradient changes by some per cent.
        assert off <= 0.1 * moved, f"{name}: {off / moved:.1e} of what training changed"
