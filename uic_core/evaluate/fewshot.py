"""Stage `fewshot`: prototypical few-shot classification on frozen features of miniImageNet (docs/protocol.md, Table 5).

Makes Table 5. Expected for UIC 3k: 65.05 at 224, conv5+MP, and 52.43 at 84, conv3; chance is 20 for 5 ways. Note that
the unlabelled ImageNet images include the test classes. Cost at paper scale (12,000 images, two resolutions, 2000
episodes): minutes on two cores, 9 GB of temporary files beside the output, 3 GB of memory.

Episodes do not read features. With m the mean of a class's support images s ∈ S and q a query,

    ‖q − m‖² = ⟨q, q⟩ − 2/|S| Σ ⟨q, s⟩ + 1/|S|² Σ Σ ⟨s, s′⟩,

so one Gram matrix per layer holds all that the episodes need.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uic_core import checkpoint, recipe
from uic_core.arguments import add_threads, stage_parser
from uic_core.data.augment import normalize
from uic_core.data.index import Index
from uic_core.data.loader import Loader
from uic_core.errors import InputError, is_full, stage
from uic_core.evaluate.frozen import demand, frozen, taps
from uic_core.evaluate.inputs import layers_of
from uic_core.evaluations import Fewshot, Resolution
from uic_core.evaluations.evaluation import Precision
from uic_core.models.architecture import MAX_POOLED
from uic_core.models.network import Network
from uic_core.run import cpus, devices, metrics, randomness
from uic_core.run.parallel import demand_one

_BATCH = 64  # images per forward pass
_CHUNK_BYTES = 1 << 28  # of features in memory at a time
_ROWS = 512  # of the Gram matrix, computed at a time
_EPISODES = 500  # episodes evaluated at a time


@dataclass(frozen=True)
class Episodes:
    """Index positions, distinct within an episode: support int64 [E, ways, shots], query int64 [E, ways, queries]."""

    support: NDArray[np.int64]
    query: NDArray[np.int64]


class Features:
    """A float32 [N, D] matrix on disk, split along D for streaming. Its unnamed file disappears with the process.

    Args:
        folder: for the file; needs 4·N·D bytes of space.
        chunk_bytes: size of the chunks that `chunks` yields.
    """

    def __init__(self, folder: Path, images: int, dimension: int, chunk_bytes: int = _CHUNK_BYTES) -> None:
        self.images, self.dimension = images, dimension
        self._width = max(1, min(dimension, chunk_bytes // (4 * images)))
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._folder = folder

    def write(self, first: int, rows: NDArray[np.float32]) -> None:
        """Store the features [b, D] of images first … first + b − 1.

        Raises:
            InputError: the disk is full.
        """
        assert rows.shape[1] == self.dimension, f"{rows.shape[1]} features, expected {self.dimension}"
        try:
            for left in range(0, self.dimension, self._width):
                part = np.ascontiguousarray(rows[:, left : left + self._width], np.float32)
                self._file.seek(4 * (left * self.images + first * part.shape[1]))
                self._file.write(part.data)
            self._file.flush()
        except OSError as error:
            if is_full(error):
                need = 4e-9 * self.images * self.dimension
                raise InputError(
                    f"{self._folder}: the disk is full; a layer's features take {need:.1f} GB there while the "
                    "evaluation runs: free some space and run the same command again"
                ) from error
            raise

    def chunks(self) -> Iterator[Tensor]:
        """Yield all images' features, some dimensions at a time: float32 [N, d]; the d sum to D."""
        self._file.seek(0)
        for left in range(0, self.dimension, self._width):
            width = min(self._width, self.dimension - left)
            chunk = np.fromfile(self._file, np.float32, self.images * width)
            yield torch.from_numpy(chunk.reshape(self.images, width))

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()


@torch.no_grad()
def extract(
    network: Network, index: Index, resolution: Resolution, layers: Iterable[str], folder: Path, workers: int = 0,
    precision: Precision = "fp32",
) -> dict[str, Features]:  # fmt: skip
    """Compute flattened features of every image, in one pass, on the network's device.

    The shorter side is resized to `resolution.resize`, the centre cropped to `resolution.crop`, and ImageNet's mean and
    deviation are applied. Convolutions take any size, so the crop need not be the training size. The network ends in
    eval mode and frozen; an assertion checks that it is bitwise unchanged.

    Args:
        layers: all or some of the architecture's `fewshot_layers`.
        folder: for the temporary files.
        workers: decoding processes; 0 decodes in this one.
        precision: of the network.

    Raises:
        InputError: an image cannot be read, or the disk is full.
    """
    device = next(network.parameters()).device
    wanted = {layer: layer.removesuffix(MAX_POOLED) for layer in layers}
    stored: dict[str, Features] = {}
    loader = Loader(index, resolution.crop, resolution.resize, _BATCH, workers, device)
    with frozen(network), contextlib.closing(loader):
        for images, positions in loader.batches(np.arange(len(index)), "center_crop", seed=0, epoch=0):
            found = taps(network, normalize(images), dict.fromkeys(wanted.values()), precision)
            for layer, tapped in wanted.items():
                maps = found[tapped] if layer == tapped else network.pool_last(found[tapped])
                rows = maps.flatten(1).float().cpu().numpy()
                if layer not in stored:
                    stored[layer] = Features(folder, len(index), rows.shape[1])
                stored[layer].write(int(positions[0]), rows)
    return stored


def gram(chunks: Iterable[Tensor], images: int, device: torch.device) -> Tensor:
    """Compute inner products of all pairs of images, after subtracting the mean feature.

    Subtracting a constant does not change distances and reduces rounding errors. Products are float32 within a chunk
    of dimensions and are summed in float64. Only the lower half is computed.

    Args:
        chunks: float32 [N, d] each, e.g. from `Features.chunks`.

    Returns:
        float64 [N, N], symmetric, on `device`.
    """
    total = torch.zeros(images, images, dtype=torch.float64, device=device)
    blocks = [slice(first, min(first + _ROWS, images)) for first in range(0, images, _ROWS)]
    for chunk in chunks:
        centred = chunk.to(device)
        centred = centred - centred.mean(0)
        for block in blocks:
            total[block, : block.stop] += centred[block] @ centred[: block.stop].T
    for block in blocks:
        total[: block.start, block] = total[block, : block.start].T
        corner = total[block, block]  # computed in full, so its halves may differ in the last bit
        total[block, block] = corner.tril() + corner.tril(-1).T
    return total


def draw_episodes(index: Index, protocol: Fewshot) -> Episodes:
    """Draw all episodes from the seed; episode e does not depend on the number of episodes.

    Each episode has `ways` distinct classes, and `shots` + `queries` distinct images of each class.

    Raises:
        InputError: there are fewer classes than ways, or a class has too few images; names the class and the index.
    """
    classes = len(index.classes)
    if classes < protocol.ways:
        raise InputError(
            f"{index.name} ({index.root}): {classes} classes, an episode takes {protocol.ways}; lower fewshot.ways"
        )
    sizes = np.bincount(index.labels, minlength=classes)
    needed = protocol.shots + protocol.queries
    for name, size in zip(index.classes, sizes, strict=True):
        if size < needed:
            raise InputError(
                f"{index.name} ({index.root}): class '{name}' has {size} images, an episode takes {protocol.shots} "
                f"support + {protocol.queries} query images; complete the class, or lower fewshot.queries"
            )
    members = np.zeros((classes, sizes.max()), np.int64)
    exists = np.arange(sizes.max()) < sizes[:, None]
    members[exists] = np.argsort(index.labels, kind="stable")
    drawn = np.concatenate(
        [
            _draw(np.arange(first, min(first + _EPISODES, protocol.episodes)), members, exists, protocol)
            for first in range(0, protocol.episodes, _EPISODES)
        ]
    )
    return Episodes(support=drawn[..., : protocol.shots], query=drawn[..., protocol.shots :])


def squared_distances(gram: Tensor, support: Tensor, query: Tensor) -> Tensor:
    """Compute squared Euclidean distances of queries to class means by the formula of the module's docstring.

    Args:
        gram: [N, N], symmetric.
        support: int64 [E, ways, shots].
        query: int64 [E, Q].

    Returns:
        [E, Q, ways].
    """
    episodes, ways, shots = support.shape
    # Read as few rows of the matrix as possible: those of the support images.
    with_support = gram[support.flatten(1)[:, :, None], query[:, None, :]]
    with_mean = with_support.view(episodes, ways, shots, -1).mean(2).transpose(1, 2)
    mean_norms = gram[support[:, :, :, None], support[:, :, None, :]].mean((2, 3))
    return gram.diagonal()[query][:, :, None] - 2 * with_mean + mean_norms[:, None, :]


def accuracies(gram: Tensor, episodes: Episodes) -> NDArray[np.float64]:
    """Accuracy of each episode: share of queries whose nearest class mean is that of their class; float64 [E], 0..1."""
    count, ways, queries = episodes.query.shape
    truth = torch.arange(ways, device=gram.device).repeat_interleave(queries)
    result = np.empty(count)
    for first in range(0, count, _EPISODES):
        block = slice(first, first + _EPISODES)
        support = torch.from_numpy(episodes.support[block]).to(gram.device)
        query = torch.from_numpy(episodes.query[block]).to(gram.device).flatten(1)
        nearest = squared_distances(gram, support, query).argmin(2)
        result[block] = (nearest == truth).double().mean(1).cpu().numpy()
    return result


def summary(accuracies: NDArray[np.float64]) -> metrics.Value:
    """Mean over episodes in percent, with the 95 % interval ± 1.96·std/√E (std with E − 1)."""
    percent = accuracies * 100
    interval = 1.96 * percent.std(ddof=1) / math.sqrt(len(percent))
    return metrics.Value(value=float(percent.mean()), unit="%", ci95=float(interval), n=len(percent))


def evaluate(
    network: Network, index: Index, protocol: Fewshot, folder: Path, workers: int = 0
) -> tuple[dict[str, metrics.Value], dict[str, int]]:
    """Evaluate every layer at every resolution, on the same episodes.

    Args:
        folder: for temporary files, up to 4 bytes per feature of one resolution.
        workers: decoding processes; 0 decodes in this one.

    Returns:
        Accuracies and feature dimensions, both keyed by "<resolution>/<layer>".

    Raises:
        InputError: from `layers_of`, `draw_episodes` or `extract`, or a feature is not finite.
    """
    layers = layers_of(network.arch, protocol, "fewshot")
    episodes = draw_episodes(index, protocol)
    device = next(network.parameters()).device
    values: dict[str, metrics.Value] = {}
    dimensions: dict[str, int] = {}
    for name, resolution in protocol.resolutions.items():
        stored = extract(network, index, resolution, layers, folder, workers, protocol.precision)
        for layer, features in stored.items():
            column = f"{name}/{layer}"
            products = gram(features.chunks(), len(index), device)
            features.close()
            if not torch.isfinite(products.diagonal()).all():
                raise InputError(f"fewshot: {column}: a feature is not finite; check the checkpoint's weights")
            values[column] = summary(accuracies(products, episodes))
            dimensions[column] = features.dimension
            print(f"{column}: {values[column].value:.2f} ± {values[column].ci95:.2f} %", flush=True)
            del products
    return values, dimensions


def main(arguments: list[str] | None = None) -> None:
    """Measure the few-shot accuracy of a checkpoint's frozen features; write the metrics JSON."""
    parser = stage_parser("uic_core.evaluate.fewshot", main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--protocol", type=Path, required=True, help="the config's fewshot section")
    parser.add_argument("--index", type=Path, required=True, help="index of the test classes")
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write; temporary files lie beside it")
    parser.add_argument("--run", required=True, help="the run's name")
    add_threads(parser)
    options = parser.parse_args(arguments)
    with stage():
        demand_one("fewshot")
        device = devices.current()
        protocol = recipe.load(Fewshot, options.protocol)
        demand(protocol.precision, device, "fewshot")
        index = Index.load(options.index, verify=True)
        randomness.seed_everything(protocol.seed)
        network, _, origin = checkpoint.of_run(options.run, options.checkpoint)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        network = network.to(device)
        values, dimensions = evaluate(network, index, protocol, options.out.parent, cpus.workers(options.threads))
        settings: dict[str, Any] = {
            "layers": layers_of(network.arch, protocol, "fewshot"),
            "distance": "squared Euclidean to class means",
            "dimensions": dimensions,
        }
        metrics.record(
            options.out, "fewshot", origin,
            dataset=metrics.Dataset(name=index.name, fingerprint=index.fingerprint, sizes={"test": len(index)}),
            values=values, protocol=protocol.model_dump() | settings, seed=protocol.seed, hardware=devices.hardware(),
        )  # fmt: skip


def _draw(
    numbers: NDArray[np.int64], members: NDArray[np.int64], exists: NDArray[np.bool_], protocol: Fewshot
) -> NDArray[np.int64]:
    """Draw the images of the episodes `numbers`, [E, ways, shots + queries], by sorting seeded random numbers.

    Args:
        members: int64 [C, n], positions in the index by class, padded if a class has fewer than n images.
        exists: bool [C, n], False for padding.
    """
    classes, largest = members.shape
    u = randomness.uniforms(protocol.seed, 0, numbers, classes + protocol.ways * largest)
    chosen = np.argsort(u[:, :classes], axis=1)[:, : protocol.ways]
    order = u[:, classes:].reshape(len(numbers), protocol.ways, largest)
    order[~exists[chosen]] = np.inf
    needed = protocol.shots + protocol.queries
    smallest = np.argpartition(order, needed - 1, axis=2)[:, :, :needed]
    within = np.argsort(np.take_along_axis(order, smallest, axis=2), axis=2)
    return members[chosen[:, :, None], np.take_along_axis(smallest, within, axis=2)]


if __name__ == "__main__":
    main()
