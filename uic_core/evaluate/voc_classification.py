"""Stage `voc_classification`: multi-label classification of VOC07 on a pretrained network (PROTOCOL section 5).

Table 4, columns Classification FC6-8 (`train: fc6_8`) and ALL (`train: all`). Expect 72.0 for DeepCluster's AlexNet
with `batch_norm: affine_trained` and 70.4 with `frozen`. At paper scale: 80k (150k) iterations of 16 images; decoding
is the bottleneck, so give it `--threads`.

Everything behind the convolutions is new: the classifier learns from N(0, .01) and bias .1, whatever it was trained
for, so any `image_size` will do. In column FC6-8 the convolutions stay as they are; batch-norm scale and shift may
train, its statistics never do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from uic_core import checkpoint, recipe
from uic_core.config import VocClassification
from uic_core.data import reader, voc
from uic_core.data.augment import CROP_UNIFORMS, UNIFORMS, augment, crop_box
from uic_core.errors import InputError, stage
from uic_core.evaluate.average_precision import class_average_precisions
from uic_core.evaluate.frozen import fingerprint
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.run import cpus, devices, metrics, randomness

SCALE = (0.1, 0.5)
"""Area of a crop, in parts of the image's; crops are square in the image."""

CACHE_BYTES = 1_000_000_000
"""Images stay decoded in memory if all of a split fit into this; the numbers are the same either way."""

# Crops draw from a stream of their own, else they would repeat the numbers that decide about flips.
_CROP_STREAM = 1 << 32
_TEST_BATCH = 160  # crops a forward
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def prepare(network: Network, protocol: VocClassification) -> Network:
    """The network that is trained: the convolutions of `network`, everything behind them new, 20 outputs.

    As in DeepCluster's code, fc6 and fc7 start from N(0, .01), fc8 as PyTorch draws it (uniform, ± 1/√inputs), and all
    biases from .1. The 1×1 convolutions of the ResNet's MLP head start as fc6 does, and its batch norms from 1 and 0
    with statistics of their own to learn: they are no pretrained layers any more.
    `requires_grad` says what is trained: see `protocol.train` and `protocol.batch_norm`.

    Raises:
        InputError: image_size is too small for the architecture (from `build`).
    """
    prepared = build(network.arch, classes=len(voc.CLASSES), image_size=protocol.image_size, sobel=network.uses_sobel)
    prepared.features.load_state_dict(network.features.state_dict(), strict=True)
    prepared.requires_grad_(False)
    for module in prepared.features.modules():
        trained = (
            protocol.batch_norm == "affine_trained" if isinstance(module, _BATCH_NORMS) else protocol.train == "all"
        )
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trained)
    for head in (prepared.classifier, prepared.top):
        head.requires_grad_(True)
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if module is prepared.top:
                    module.reset_parameters()
                else:
                    nn.init.normal_(module.weight, 0, 0.01)
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.1)
            elif isinstance(module, _BATCH_NORMS):
                module.reset_parameters()
    return prepared


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over the classes of binary cross-entropy with logits, mean over the batch; 255 counts nothing.

    Args:
        logits: float [B, C].
        targets: uint8 [B, C] of 1, 0 and 255.

    Returns:
        A scalar ≥ 0; C·ln 2 where the logits say nothing and nothing is difficult.
    """
    counted = (targets != voc.IGNORED).to(logits.dtype)
    wanted = (targets == 1).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, wanted, weight=counted, reduction="sum") / len(logits)


def train(
    network: Network, files: Sequence[Path], targets: NDArray[np.uint8], protocol: VocClassification, workers: int = 0
) -> None:
    """Train a prepared network in place, on the device it lies on.

    Images come in a seeded shuffle after the other; crop and flip depend on (seed, iteration, image) alone, dropout
    on torch's global generator. Everything that must not train is asserted to be bitwise what it was.

    Args:
        files: the images, n of them.
        targets: uint8 [n, 20] of 1, 0 and 255 (`voc.multilabels`).
        workers: decoding processes; 0 decodes in this one.

    Raises:
        InputError: an image cannot be read, or a gradient is not finite; names the file, or the iteration.
    """
    before = {name: value.clone() for name, value in _untrained(network).items()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=True
    )
    network.train()
    network.features.eval()  # batch norm keeps its statistics; dropout lies behind the features
    device = trained[0].device
    order = _order(len(files), protocol)
    requests = [_Request(positions, (step,)) for step, positions in enumerate(order)]
    for step, crops in enumerate(_crops(files, requests, protocol, workers)):
        lr = protocol.lr * 0.5 ** (step // protocol.lr_halved_every)
        for group in optimizer.param_groups:
            group["lr"] = lr
        images = _augmented(crops, order[step], (step,), protocol.seed, device)
        batch_loss = loss(network(images), torch.from_numpy(targets[order[step]]).to(device))
        optimizer.zero_grad()
        batch_loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, protocol.clip_gradient)
        if not torch.isfinite(norm):
            raise InputError(
                f"voc_classification: gradient norm {norm.item()} (loss {batch_loss.item()}) at iteration {step}; "
                "check the checkpoint's weights, or lower lr"
            )
        optimizer.step()
        if (step + 1) % max(1, protocol.iterations // 10) == 0:
            print(f"iteration {step + 1}/{protocol.iterations}: loss {batch_loss.item():.4f}, lr {lr:g}", flush=True)
    after = _untrained(network)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not changed, f"training changed what it must not: {changed}"


@torch.no_grad()
def predict(
    network: Network, files: Sequence[Path], protocol: VocClassification, workers: int = 0
) -> NDArray[np.float32]:
    """Sum of the logits over `protocol.crops` random crops and flips of each image, in eval mode.

    That the test leaves the network bitwise as it is is asserted.

    Returns:
        float32 [n, 20].

    Raises:
        InputError: an image cannot be read, or a logit is not finite; names the file.
    """
    network.eval()
    before = fingerprint(network)
    device = next(network.parameters()).device
    draws = tuple(range(protocol.crops))
    size = max(1, _TEST_BATCH // protocol.crops)
    chunks = [np.arange(first, min(first + size, len(files))) for first in range(0, len(files), size)]
    scores = np.empty((len(files), len(voc.CLASSES)), np.float32)
    requests = [_Request(positions, draws) for positions in chunks]
    for positions, crops in zip(chunks, _crops(files, requests, protocol, workers), strict=True):
        logits = network(_augmented(crops, positions, draws, protocol.seed, device))
        scores[positions] = logits.view(len(positions), protocol.crops, -1).sum(1).float().cpu().numpy()
    assert fingerprint(network) == before, "the network changed while it was tested"
    unusable = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(unusable):
        raise InputError(
            f"{files[unusable[0]]}: its logits are not finite; check the checkpoint's weights, or lower lr"
        )
    return scores


def values(scores: NDArray[np.float32], targets: NDArray[np.uint8]) -> dict[str, metrics.Value]:
    """mAP over the classes that have a positive test image, and each class's AP; all in percent.

    A class without positives (small test sets only; VOC07 has none) has no AP: it is left out of the mean and has no
    value.

    Args:
        scores, targets: [n, 20], see `predict` and `voc.multilabels`.

    Raises:
        InputError: no class has a positive image.
    """
    precisions = class_average_precisions(scores, targets) * 100
    if np.isnan(precisions).all():
        raise InputError("voc_classification: no test image shows an object that is not difficult; check the test list")
    counted = (targets != voc.IGNORED).sum(0)
    result = {"map": metrics.Value(value=float(np.nanmean(precisions)), unit="%", n=len(targets))}
    for name, precision, n in zip(voc.CLASSES, precisions, counted, strict=True):
        if np.isfinite(precision):
            result[f"ap/{name}"] = metrics.Value(value=float(precision), unit="%", n=int(n))
    return result


def main(arguments: list[str] | None = None) -> None:
    """Train on VOC07 trainval, test on test, write the metrics JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--protocol", type=Path, required=True, help="a voc_classification section of the config")
    parser.add_argument("--voc", type=Path, required=True, help="the folder that holds VOC2007/")
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write")
    parser.add_argument("--run", required=True, help="the run's name")
    cpus.add_threads(parser)
    options = parser.parse_args(arguments)
    with stage():
        protocol = recipe.load(VocClassification, options.protocol)
        splits = {split: voc.multilabels(options.voc, split) for split in ("trainval", "test")}
        fingerprint = voc.fingerprint(options.voc, 2007, list(splits))
        files = {
            split: [voc.image_path(options.voc, 2007, image) for image in ids] for split, (ids, _) in splits.items()
        }
        randomness.seed_everything(protocol.seed)
        pretrained, trained_by = checkpoint.load(options.checkpoint)
        network = prepare(pretrained, protocol).to(devices.current())
        coverage = pretrained.coverage
        del pretrained
        workers = options.threads - 1
        train(network, files["trainval"], splits["trainval"][1], protocol, workers)
        found = values(predict(network, files["test"], protocol, workers), splits["test"][1])
        metrics.write(
            options.out,
            metrics.Metrics(
                evaluation=f"voc_classification_{protocol.train}",
                run=options.run,
                dataset=metrics.Dataset(
                    name="voc07", fingerprint=fingerprint, sizes={split: len(names) for split, names in files.items()}
                ),
                values=found,
                protocol=_settings(protocol, found),
                provenance=metrics.provenance(
                    recipe_hash=trained_by.hash(),
                    checkpoint=options.checkpoint,
                    coverage=coverage,
                    seed=protocol.seed,
                    hardware=devices.hardware(),
                ),
            ),
        )
        print(f"{options.run}: mAP {found['map'].value:.1f} % over {len(files['test'])} test images")


def _settings(protocol: VocClassification, found: dict[str, metrics.Value]) -> dict[str, Any]:
    """Every setting that changes the number, those that are no config keys included."""
    return {
        **protocol.model_dump(),
        "crop_scale": list(SCALE),
        "difficult": "neither trained nor counted",
        "average_precision": "all points",
        "classes_counted": len(found) - 1,
    }


def _untrained(network: Network) -> dict[str, Tensor]:
    """What training must leave alone: parameters without gradient, and the features' and Sobel's buffers."""
    kept: dict[str, Tensor] = {name: value for name, value in network.named_parameters() if not value.requires_grad}
    for part in ("features", "sobel"):
        kept |= {f"{part}.{name}": value for name, value in getattr(network, part).named_buffers()}
    return kept


def _order(count: int, protocol: VocClassification) -> NDArray[np.int64]:
    """Positions of every iteration's images, [iterations, batch]: one seeded shuffle after the other, cut up."""
    random = np.random.default_rng(protocol.seed)
    wanted = protocol.iterations * protocol.batch_size
    shuffles = [random.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate(shuffles)[:wanted].reshape(protocol.iterations, protocol.batch_size)


def _augmented(
    crops: Tensor, positions: NDArray[np.int64], draws: tuple[int, ...], seed: int, device: torch.device
) -> Tensor:
    """uint8 [B, draws, 3, S, S] to float32 [B·draws, 3, S, S]: flipped or not, normalised."""
    numbers = np.stack([randomness.uniforms(seed, draw, positions, UNIFORMS) for draw in draws], axis=1)
    return augment(crops.flatten(0, 1).to(device, non_blocking=True), numbers.reshape(-1, UNIFORMS), "standard")


@dataclass(frozen=True)
class _Request:
    """Crops to make: of each image at `positions`, one for every number in `draws`."""

    positions: NDArray[np.int64]
    draws: tuple[int, ...]


class _Cropper(Dataset[Tensor | str]):
    """Answers requests with uint8 [B, draws, 3, S, S]; an unreadable file with its message, to cross processes."""

    def __init__(self, files: Sequence[Path], size: int, seed: int) -> None:
        self._files, self._size, self._seed = files, size, seed
        self._cache: list[Image.Image] = []

    def fill_cache(self) -> None:
        """Decode all images, or keep none of them if they need more than CACHE_BYTES."""
        used = 0
        for file in self._files:
            image = reader.read_rgb(file)
            used += image.width * image.height * 4  # Pillow stores RGB in four bytes
            if used > CACHE_BYTES:
                self._cache.clear()
                return
            self._cache.append(image)

    def __getitem__(self, request: _Request) -> Tensor | str:
        draws = [
            randomness.uniforms(self._seed + _CROP_STREAM, draw, request.positions, CROP_UNIFORMS)
            for draw in request.draws
        ]
        crops = np.empty((len(request.positions), len(draws), 3, self._size, self._size), np.uint8)
        for row, position in enumerate(request.positions):
            try:
                image = self._cache[position] if self._cache else reader.read_rgb(self._files[position])
            except InputError as error:
                return str(error)
            for column, numbers in enumerate(draws):
                box = crop_box(image.width, image.height, numbers[row], SCALE, (1.0, 1.0))
                crops[row, column] = reader.resized_crop(image, box, self._size)
        return torch.from_numpy(crops)


def _crops(
    files: Sequence[Path], requests: list[_Request], protocol: VocClassification, workers: int
) -> Iterator[Tensor]:
    cropper = _Cropper(files, protocol.image_size, protocol.seed)
    if sum(len(request.positions) for request in requests) > len(files):  # an image seen once is no use in a cache
        cropper.fill_cache()
    largest = max(len(request.positions) * len(request.draws) for request in requests)
    loader: DataLoader[Any] = DataLoader(
        cropper,
        batch_size=None,  # a request is a whole batch
        sampler=requests,  # type: ignore[arg-type]  # any iterable with a length will do
        num_workers=cpus.sharing(workers, largest * 3 * protocol.image_size**2),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the global one belongs to dropout
    )
    for answer in loader:
        if isinstance(answer, str):
            raise InputError(answer)
        yield answer


if __name__ == "__main__":
    main()
