"""Stage `voc_classification`: multi-label classification of VOC07 on a pretrained network (docs/protocol.md, Table 4).

Makes Table 4, columns Classification FC6-8 (`train: fc6_8`) and ALL (`train: all`). Expected for DeepCluster's AlexNet:
72.0 with `batch_norm: affine_trained`, 70.4 with `frozen`. Cost at paper scale: 80k (150k) iterations of 16 images;
decoding is the bottleneck, so use several `--threads`.

Everything after the convolutions is new: the classifier starts from weights N(0, .01) and bias .1, so `image_size` need
not be that of the pretraining. In column FC6-8 the convolutions are frozen; batch-norm scale and shift may train, the
statistics never change.

SIGTERM, SIGUSR1 and Ctrl-C save the state beside the metrics and end with status 75; the same command resumes. A state
of another checkpoint, protocol or data set is not used.
"""

from __future__ import annotations

import math
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
from torch.utils.data import Dataset

from uic_core import checkpoint, recipe
from uic_core.arguments import add_checked, add_save_every, add_threads, stage_parser
from uic_core.data import reader, stamps, voc
from uic_core.data.augment import CROP_UNIFORMS, UNIFORMS, augment, crop_box
from uic_core.data.loader import answers
from uic_core.errors import InputError, stage
from uic_core.evaluate import voc_state
from uic_core.evaluate.average_precision import class_average_precisions
from uic_core.evaluate.frozen import fingerprint
from uic_core.evaluations import VocClassification
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.run import cpus, devices, finished, metrics, randomness
from uic_core.run.parallel import ALONE, demand_one
from uic_core.run.saved_state import Saver, State
from uic_core.run.signals import Signals

SCALE = (0.1, 0.5)
"""Range of a crop's area as a share of the image's; crops are square in the image."""

CACHE_BYTES = 1_000_000_000
"""Decoded images are kept in memory if all of a split fit into this; it does not change the results."""

_TEST_BATCH = 160  # crops per forward pass
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def prepare(network: Network, protocol: VocClassification) -> Network:
    """Build the network to train: the convolutions of `network`, new layers after them, 20 outputs.

    As in DeepCluster's code, fc6 and fc7 start from N(0, .01), fc8 from PyTorch's default (uniform, ± 1/√inputs), and
    all biases from .1. The 1×1 convolutions of ResNet's MLP head start like fc6. Its batch norms start from scale 1 and
    shift 0 and learn new statistics, because these layers are no longer pretrained.
    `requires_grad` is set on what `protocol.train` and `protocol.batch_norm` select.

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
    """Binary cross-entropy with logits, summed over the classes, averaged over the batch; targets 255 are ignored.

    Args:
        logits: float [B, C].
        targets: uint8 [B, C] of 1, 0 and 255.

    Returns:
        A scalar ≥ 0; C·ln 2 if all logits are 0 and no target is 255.
    """
    counted = (targets != voc.IGNORED).to(logits.dtype)
    wanted = (targets == 1).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, wanted, weight=counted, reduction="sum") / len(logits)


def train(
    network: Network,
    files: Sequence[Path],
    targets: NDArray[np.uint8],
    protocol: VocClassification,
    workers: int = 0,
    saver: Saver | None = None,
) -> float:
    """Train a prepared network in place, on its device.

    Images come in consecutive seeded shuffles. Crop and flip depend only on (seed, iteration, image), dropout on
    torch's global generator. An assertion checks that everything that must not train is bitwise unchanged.

    Args:
        files: the n images.
        targets: uint8 [n, 20] of 1, 0 and 255 (`voc.multilabels`).
        workers: decoding processes; 0 decodes in this one.
        saver: saves states and ends on a signal; None: neither.

    Returns:
        Mean loss over the last tenth of the iterations.

    Raises:
        InputError: an image cannot be read (names the file), or a gradient is not finite (names the iteration).
        Interrupted: a signal came, and the state is saved.
    """
    before = {name: value.clone() for name, value in _untrained(network).items()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=True
    )
    network.train()
    network.features.eval()  # batch norm keeps its statistics; dropout comes after the features
    device = trained[0].device
    order = _order(len(files), protocol)
    tenth = max(1, protocol.iterations // 10)
    last = torch.zeros((), device=device)
    done = 0
    if saver and (found := saver.state.load(_say)):
        done = voc_state.restore(found, network, optimizer, trained, last)
        _say(f"{found[0]}: going on from iteration {done + 1}")

    def save() -> None:
        assert saver
        saver.state.save(*voc_state.pack(network, optimizer, trained, last, done))

    requests = [_Request(positions, (step,)) for step, positions in enumerate(order)][done:]
    for step, crops in enumerate(_crops(files, requests, protocol, workers) if requests else (), done):
        lr = protocol.lr * 0.5 ** (step // protocol.lr_halved_every)
        for group in optimizer.param_groups:
            group["lr"] = lr
        images = _augmented(crops, order[step], (step,), protocol.seed, device)
        batch_loss = loss(network(images), devices.onto(device, targets[order[step]]))
        optimizer.zero_grad()
        batch_loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, protocol.clip_gradient)
        if not torch.isfinite(norm):
            raise InputError(
                f"voc_classification: gradient norm {norm.item()} (loss {batch_loss.item()}) at iteration {step}; "
                "check the checkpoint's weights, or lower lr"
            )
        optimizer.step()
        if step >= protocol.iterations - tenth:
            last += batch_loss.detach() / tenth
        if (step + 1) % tenth == 0:
            _say(f"iteration {step + 1}/{protocol.iterations}: loss {batch_loss.item():.4f}, lr {lr:g}")
        done = step + 1
        if saver:
            saver.stop_or_save(saver.requests(saver.every), f"iteration {done + 1}", save)
    if saver and requests:
        save()  # a process that is ended during the test need not train again
    after = _untrained(network)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not changed, f"training changed what it must not: {changed}"
    return last.item()


@torch.no_grad()
def predict(
    network: Network,
    files: Sequence[Path],
    protocol: VocClassification,
    workers: int = 0,
    saver: Saver | None = None,
) -> NDArray[np.float32]:
    """Sum the logits over `protocol.crops` random crops and flips of each image, in eval mode.

    An assertion checks that the network is bitwise unchanged.

    Returns:
        float32 [n, 20].

    Raises:
        InputError: an image cannot be read, or a logit is not finite; names the image file.
        Interrupted: a signal came; the state is that of `train`, and the test begins anew.
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
        if saver:
            saver.stop(saver.requests(0)[0], "the test")
    assert fingerprint(network) == before, "the network changed while it was tested"
    unusable = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(unusable):
        raise InputError(
            f"{files[unusable[0]]}: its logits are not finite; check the checkpoint's weights, or lower lr"
        )
    return scores


def values(scores: NDArray[np.float32], targets: NDArray[np.uint8], remark: str = "") -> dict[str, metrics.Value]:
    """Compute each class's AP and their mean (mAP), in percent.

    A class without a positive test image has no AP, so it has no value and does not enter the mean. This happens in
    small test sets only, not in VOC07.

    Args:
        scores, targets: [n, 20], from `predict` and `voc.multilabels`.
        remark: on every value.

    Raises:
        InputError: no class has a positive image.
    """
    precisions = class_average_precisions(scores, targets) * 100
    if np.isnan(precisions).all():
        raise InputError("voc_classification: no test image shows an object that is not difficult; check the test list")
    counted = (targets != voc.IGNORED).sum(0)
    result = {"map": metrics.Value(value=float(np.nanmean(precisions)), unit="%", n=len(targets), remark=remark)}
    for name, precision, n in zip(voc.CLASSES, precisions, counted, strict=True):
        if np.isfinite(precision):
            result[f"ap/{name}"] = metrics.Value(value=float(precision), unit="%", n=int(n), remark=remark)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Train on VOC07 trainval, test on test, write the metrics JSON."""
    parser = stage_parser("uic_core.evaluate.voc_classification", main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--protocol", type=Path, required=True, help="a voc_classification section of the config")
    parser.add_argument("--voc", type=Path, required=True, help="the folder that holds VOC2007/")
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write")
    parser.add_argument("--run", required=True, help="the run's name")
    add_checked(parser)
    add_save_every(parser)
    add_threads(parser)
    options = parser.parse_args(arguments)
    with stage(), Signals() as signals:
        demand_one("voc_classification")
        device = devices.current()
        protocol = recipe.load(VocClassification, options.protocol)
        stamps.verify(options.checked, voc.files(options.voc))
        splits = {split: voc.multilabels(options.voc, split) for split in ("trainval", "test")}
        fingerprint = stamps.by_content(options.checked, "all", voc.fingerprint(options.voc, list(splits)))
        files = {split: [voc.image_path(options.voc, image) for image in ids] for split, (ids, _) in splits.items()}
        randomness.seed_everything(protocol.seed)
        pretrained, _, origin = checkpoint.of_run(options.run, options.checkpoint)
        network = prepare(pretrained, protocol).to(device)
        del pretrained
        workers, evaluation = cpus.workers(options.threads), f"voc_classification_{protocol.train}"
        identity = {"checkpoint": origin.checkpoint, "protocol": protocol.model_dump(), "voc07": fingerprint}
        if finished.put_back([options.out], identity, ALONE, _say):
            return
        state = State(options.out.parent, identity, prefix=f"{evaluation}.")
        with state.claimed(ALONE):
            saver = Saver(state, ALONE, signals, options.save_every)
            ended = train(network, files["trainval"], splits["trainval"][1], protocol, workers, saver)
            guess = len(voc.CLASSES) * math.log(2)
            remark = metrics.diverged(guess, ended, guess, protocol.lr)
            found = values(predict(network, files["test"], protocol, workers, saver), splits["test"][1], remark)
            sizes = {split: len(names) for split, names in files.items()}
            state.check_owner()
            metrics.record(
                options.out, evaluation, origin,
                dataset=metrics.Dataset(name="voc07", fingerprint=fingerprint, sizes=sizes), values=found,
                protocol=_settings(protocol, found), seed=protocol.seed, hardware=devices.hardware(),
                earlier_seconds=state.earlier_seconds,
            )  # fmt: skip
            finished.keep([options.out], identity)
            state.remove()
        print(f"{options.run}: mAP {found['map'].value:.1f} % over {len(files['test'])} test images")
        if remark:
            print(f"{evaluation} {remark}; lower its lr")


def _settings(protocol: VocClassification, found: dict[str, metrics.Value]) -> dict[str, Any]:
    """All settings that affect the result, including those that are not config keys."""
    return {
        **protocol.model_dump(),
        "crop_scale": list(SCALE),
        "difficult": "neither trained nor counted",
        "average_precision": "all points",
        "classes_counted": len(found) - 1,
    }


def _say(line: str) -> None:
    print(line, flush=True)


def _untrained(network: Network) -> dict[str, Tensor]:
    """The tensors that training must not change: parameters without gradient, buffers of features and Sobel."""
    kept: dict[str, Tensor] = {name: value for name, value in network.named_parameters() if not value.requires_grad}
    for part in ("features", "sobel"):
        kept |= {f"{part}.{name}": value for name, value in getattr(network, part).named_buffers()}
    return kept


def _order(count: int, protocol: VocClassification) -> NDArray[np.int64]:
    """Positions of every iteration's images, [iterations, batch]: consecutive seeded shuffles, cut into batches."""
    random = np.random.default_rng(protocol.seed)
    wanted = protocol.iterations * protocol.batch_size
    shuffles = [random.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate(shuffles)[:wanted].reshape(protocol.iterations, protocol.batch_size)


def _augmented(
    crops: Tensor, positions: NDArray[np.int64], draws: tuple[int, ...], seed: int, device: torch.device
) -> Tensor:
    """Flip at random and normalise crops: uint8 [B, draws, 3, S, S] to float32 [B·draws, 3, S, S]."""
    numbers = np.stack([randomness.uniforms(seed, draw, positions, UNIFORMS) for draw in draws], axis=1)
    return augment(crops.flatten(0, 1).to(device, non_blocking=True), numbers.reshape(-1, UNIFORMS), "standard")


@dataclass(frozen=True)
class _Request:
    """Crops to make: for each image at `positions`, one per number in `draws`."""

    positions: NDArray[np.int64]
    draws: tuple[int, ...]


class _Cropper(Dataset[Tensor | str]):
    """Map requests to uint8 [B, draws, 3, S, S]; report an unreadable file as a string, for the main process."""

    def __init__(self, files: Sequence[Path], size: int, seed: int) -> None:
        self._files, self._size, self._seed = files, size, seed
        self._cache: list[Image.Image] = []

    def fill_cache(self) -> None:
        """Decode and keep all images; keep none if they need more than CACHE_BYTES."""
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
            randomness.uniforms(self._seed + randomness.Stream.CROPS, draw, request.positions, CROP_UNIFORMS)
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
    if sum(len(request.positions) for request in requests) > len(files):  # images that are read once need no cache
        cropper.fill_cache()
    largest = max(len(request.positions) * len(request.draws) for request in requests)
    return answers(cropper, requests, workers, largest * 3 * protocol.image_size**2)


if __name__ == "__main__":
    main()
