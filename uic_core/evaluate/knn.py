"""Stage `knn`: weighted k-nearest-neighbour classification by frozen features (docs/protocol.md, Nearest neighbours).

Makes the table of nearest neighbours, of every run. Published for AlexNet on ImageNet, by its fully connected feature:
26.8 for DeepCluster, 3.5 for random weights. Cost at paper scale: one forward pass of all images; no training.

The features of the validation images are held. Those of the training images, the bank, come from the network in blocks,
and each block is dropped after its products: only the nearest neighbours so far of each validation image are kept. So
memory does not grow with the bank, and no feature is written to disk.

SIGTERM, SIGUSR1 and Ctrl-C save the neighbours so far beside the metrics and end with status 75; the same command
resumes. A state of another checkpoint, protocol or data set is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from uic_core import checkpoint, recipe
from uic_core.arguments import add_save_every, add_threads, stage_parser
from uic_core.data.augment import normalize
from uic_core.data.index import Index
from uic_core.data.resident import open_loader
from uic_core.errors import InputError, stage
from uic_core.evaluate.frozen import demand, frozen, taps
from uic_core.evaluate.inputs import demand_one_data_set, layers_of
from uic_core.evaluations import Knn
from uic_core.evaluations.evaluation import Precision
from uic_core.evaluations.knn import name
from uic_core.models.network import Network
from uic_core.run import cpus, devices, finished, metrics, randomness
from uic_core.run.parallel import ALONE, demand_one
from uic_core.run.saved_state import Saver, State
from uic_core.run.signals import Signals

_BATCH = 64  # images per forward pass
_BLOCK = 64 * _BATCH  # images of the bank whose products are formed at once
_QUERIES = 1024  # validation images at once, in products and votes
_LAST = (1 << 32) - 1


class Neighbours:
    """The nearest images of a bank to each of Q queries, while the bank comes in blocks.

    Of equally similar images the one that comes first in the bank is nearer. So the result does not depend on the
    blocks, except where they change the rounding of a product.

    Attributes:
        keys: int64 [Q, k], the neighbours so far, the nearest first. The upper half of a key orders by similarity, the
            lower half by position. All keys differ, so that `topk` has no ties to break.
    """

    def __init__(self, queries: Tensor, count: int, keys: Tensor | None = None) -> None:
        """Begin with an empty bank, or go on from another object's `keys`.

        Args:
            queries: float32 [Q, D], rows of length 1.
            count: k.
        """
        self._queries = queries
        empty = torch.iinfo(torch.int64).min
        self.keys = torch.full((len(queries), count), empty, device=queries.device) if keys is None else keys

    def add(self, bank: Tensor, first: int) -> None:
        """Take further images into account.

        Args:
            bank: float32 [B, D], rows of length 1.
            first: position of the first of them, below 2³² − B.
        """
        positions = _LAST - torch.arange(first, first + len(bank), device=bank.device)
        for block, kept in zip(self._queries.split(_QUERIES), self.keys.split(_QUERIES), strict=True):
            # The bits of a float, read as an integer, rise with it if it is positive and fall if it is negative.
            bits = (block @ bank.T).view(torch.int32)
            ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)
            keys = torch.cat([kept, (ordered.long() << 32) | positions], 1)
            kept.copy_(keys.topk(kept.shape[1]).values)

    def found(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return cosine similarities, float32 [Q, k], and positions, int64 [Q, k]; the bank must have k images."""
        keys = self.keys.cpu().numpy()
        ordered = (keys >> 32).astype(np.int32)
        return (ordered ^ (ordered >> 31 & 0x7FFFFFFF)).view(np.float32), _LAST - (keys & _LAST)


def vote(
    similarities: NDArray[np.float32], labels: NDArray[np.integer], classes: int, temperature: float
) -> NDArray[np.int64]:
    """Classify by the vote of the neighbours: the score of a class is the sum of exp(s / T) over its members.

    Of classes with equal scores the one with the lowest number wins. Sums are in float64, the nearest neighbour first.

    Args:
        similarities: s, float32 [Q, k], −1..1, the largest first.
        labels: the neighbours' classes, int [Q, k], 0..classes − 1.
        temperature: T > 0.

    Returns:
        int64 [Q].
    """
    won = np.empty(len(similarities), np.int64)
    for first in range(0, len(similarities), _QUERIES):
        block = slice(first, first + _QUERIES)
        s, owners = similarities[block].astype(np.float64), labels[block].astype(np.int64)
        # Relative to the nearest neighbour's: a common factor, which decides nothing and lets no sum overflow.
        weights = np.exp((s - s[:, :1]) / temperature)
        cells = owners + classes * np.arange(len(s))[:, None]
        scores = np.bincount(cells.ravel(), weights.ravel(), classes * len(s))
        won[block] = scores.reshape(len(s), classes).argmax(1)
    return won


@torch.no_grad()
def features(
    network: Network,
    index: Index,
    layers: Sequence[str],
    resize: int,
    workers: int = 0,
    first: int = 0,
    precision: Precision = "fp32",
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Compute the features of an index's images, on centre crops: maps are averaged over their places.

    Args:
        layers: of the architecture's `knn_layers`.
        resize: shorter side before the crop, pixels.
        workers: decoding processes; 0 decodes in this one.
        first: position of the first image.
        precision: of the network; the mean over places and the norm are float32.

    Yields:
        (position of the first image of a batch, float32 [b, D] with rows of length 1 by layer).

    Raises:
        InputError: an image cannot be read (names the file), or a feature is not finite (names the layer).
    """
    loader = open_loader(index, network.image_size, resize, _BATCH, workers, next(network.parameters()).device)
    with contextlib.closing(loader):
        for crops, positions in loader.batches(np.arange(first, len(index)), "center_crop", seed=0, epoch=0):
            images = normalize(crops).contiguous(memory_format=torch.channels_last)
            found = {}
            for layer, tap in taps(network, images, layers, precision).items():
                vectors = tap.float().mean((2, 3)) if tap.ndim == 4 else tap.float()
                if not torch.isfinite(vectors).all():
                    raise InputError(f"knn: {layer}: a feature is not finite; check the checkpoint's weights")
                found[layer] = F.normalize(vectors)
            yield int(positions[0]), found


def neighbours(
    network: Network, bank: Index, queries: Index, layers: Sequence[str], count: int, resize: int, workers: int = 0,
    saver: Saver | None = None, precision: Precision = "fp32",
) -> dict[str, Neighbours]:  # fmt: skip
    """Find the nearest images of the bank to each query, by each layer.

    The network ends in eval mode and frozen; an assertion checks that it is bitwise unchanged.

    Args:
        count: k.
        saver: saves and loads states; None saves none.
        precision: of the network; similarities are float32.

    Returns:
        Neighbours by layer.

    Raises:
        InputError: from `features`; or there are states, but none is usable.
        Interrupted: a signal came; the state is saved, if any of the bank is done.
    """
    loaded = saver.state.load(_say) if saver else None
    done, kept = (int(loaded[1]["done"]), loaded[2]) if loaded else (0, {})
    if loaded:
        _say(f"{loaded[0]}: going on from image {done + 1} of the bank")
    with frozen(network):
        parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        for _, found in features(network, queries, layers, resize, workers, precision=precision):
            for layer in layers:
                parts[layer].append(found[layer])
            if saver:
                saver.stop(saver.requests(0)[0], "the pass over the validation images")
        device = parts[layers[0]][0].device
        nearest = {
            layer: Neighbours(torch.cat(parts.pop(layer)), count, kept[layer].to(device, copy=True) if kept else None)
            for layer in layers
        }

        def save() -> None:
            assert saver
            saver.state.save({layer: each.keys for layer, each in nearest.items()}, {"done": done})

        block: list[dict[str, Tensor]] = []
        for first, found in features(network, bank, layers, resize, workers, done, precision):
            block.append(found)
            if len(block) < _BLOCK // _BATCH and first + _BATCH < len(bank):
                continue
            for layer, each in nearest.items():
                each.add(torch.cat([batch[layer] for batch in block]), done)
            done = min(done + _BLOCK, len(bank))
            block.clear()
            if saver and done < len(bank):
                saver.stop_or_save(saver.requests(saver.every), f"image {done + 1} of the bank", save)
    return nearest


def values(nearest: dict[str, Neighbours], bank: Index, queries: Index, protocol: Knn) -> dict[str, metrics.Value]:
    """Compute the top-1 accuracy for each layer, k and T, with its binomial 95 % interval."""
    made = {}
    for layer, each in nearest.items():
        similarities, positions = each.found()
        labels = bank.labels[positions]
        for count in protocol.neighbours:
            for temperature in protocol.temperatures:
                won = vote(similarities[:, :count], labels[:, :count], len(bank.classes), temperature)
                right = float((won == queries.labels).mean())
                made[name(layer, count, temperature)] = metrics.percent(right, len(queries))
    return made


def main(arguments: list[str] | None = None) -> None:
    """Classify the validation images by their nearest training images; write the metrics JSON."""
    parser = stage_parser("uic_core.evaluate.knn", main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--protocol", type=Path, required=True, help="the config's knn section")
    parser.add_argument("--train-index", type=Path, required=True)
    parser.add_argument("--val-index", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write")
    parser.add_argument("--run", required=True, help="the run's name")
    add_save_every(parser)
    add_threads(parser)
    options = parser.parse_args(arguments)
    with stage(), Signals() as signals:
        demand_one("knn")
        protocol = recipe.load(Knn, options.protocol)
        demand(protocol.precision, devices.current(), "knn")
        randomness.seed_everything(protocol.seed)
        network, trained_by, origin = checkpoint.of_run(options.run, options.checkpoint)
        network = network.to(devices.current(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        layers, arch = layers_of(network.arch, protocol, "knn", "images", "val_images"), trained_by.arch
        bank = Index.load(options.train_index, verify=True).subset(protocol.images[arch], protocol.seed)
        queries = Index.load(options.val_index, verify=True).subset(protocol.val_images[arch], protocol.seed)
        demand_one_data_set(bank, queries)
        count = protocol.neighbours[-1]
        if count > len(bank):
            raise InputError(f"knn.neighbours: {count}, but {bank.name} has {len(bank)} images; lower it")
        fingerprint = f"{bank.fingerprint}+{queries.fingerprint}"
        identity = {"checkpoint": origin.checkpoint, "protocol": protocol.model_dump(), "data": fingerprint}
        if finished.put_back([options.out], identity, ALONE, _say):
            return
        state = State(options.out.parent, identity, prefix="knn.")
        with state.claimed(ALONE):
            saver = Saver(state, ALONE, signals, options.save_every)
            workers = cpus.workers(options.threads)
            nearest = neighbours(
                network, bank, queries, layers, count, trained_by.resize, workers, saver, protocol.precision
            )
            found = values(nearest, bank, queries, protocol)
            beyond: dict[str, Any] = {
                "layers": layers,
                "images": len(bank),
                "val_images": len(queries),
                "image_size": network.image_size,
                "resize": trained_by.resize,
                "similarity": "cosine; maps averaged over their places",
                "precision": protocol.precision,
            }
            state.check_owner()
            metrics.record(
                options.out, "knn", origin,
                dataset=metrics.Dataset(
                    name=bank.name.removesuffix("_train"), fingerprint=fingerprint,
                    sizes={"train": len(bank), "val": len(queries)},
                ),
                values=found, protocol=protocol.model_dump() | beyond, seed=protocol.seed,
                hardware=devices.hardware(), earlier_seconds=state.earlier_seconds,
            )  # fmt: skip
            finished.keep([options.out], identity)
            state.remove()
        shown = "  ".join(f"{key} {value.value:.1f}" for key, value in found.items())
        _say(f"{options.run}: top-1 % over {len(queries)} validation images: {shown}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
