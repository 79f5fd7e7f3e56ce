"""Ten-crop testing: four corners and the centre of an image and of its mirror image (protocol.md, Linear probes)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from uic_core.data import reader
from uic_core.data.augment import normalize
from uic_core.data.index import Index
from uic_core.data.loader import answers
from uic_core.errors import InputError
from uic_core.evaluate.heads import Affine, activations
from uic_core.evaluations.evaluation import Precision
from uic_core.evaluations.linear_probe import Test
from uic_core.models.network import Network
from uic_core.run.parallel import ALONE, Ranks

CROPS = 10

_CENTRE = 4  # the centre crop's place among the ten
_IMAGES = 25  # per batch and process; a forward pass processes ten times as many crops


def ten_crops(
    index: Index, size: int, resize: int, batches: Sequence[NDArray[np.int64]], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images, each image as ten crops.

    Args:
        size: side S of the crops, pixels.
        resize: shorter side of the image before cropping, pixels, ≥ size.
        batches: positions in the index, int64 [b] each.
        workers: decoding processes; 0 decodes in this one.

    Yields:
        (uint8 [b, 10, 3, S, S], int64 positions [b]), on the CPU, in pinned memory if there is a GPU.

    Raises:
        InputError: an image cannot be read; names the file.
    """
    return answers(_Decoder(index, size, resize), batches, workers, _IMAGES * CROPS * 3 * size**2)


@torch.no_grad()
def hits(
    network: Network,
    snapshots: Sequence[dict[str, Affine]],
    index: Index,
    resize: int,
    workers: int = 0,
    ranks: Ranks = ALONE,
    first: int = 0,
    test: Test = "ten_crop_softmax",
    precision: Precision = "fp32",
) -> Iterator[tuple[int, Tensor]]:
    """Test the heads of several epochs in one pass; the ranks share each batch.

    An image's score for a class is the softmax averaged over its ten crops, as the paper's probes have it; a peer's may
    average logits, or look at the centre crop alone. With fewer than five classes top-5 is always correct.

    Args:
        snapshots: heads of E epochs, each for the same L layers.
        index: the validation images.
        resize: shorter side of the image before cropping, pixels.
        first: position of the first image to test.
        test: how an image is tested.
        precision: of the network; the heads are float32.

    Yields:
        (position of the next image, int64 [L, 2, E]: correctly classified images of this batch over all ranks, top-1
        and top-5).

    Raises:
        InputError: an image cannot be read; names the file.
    """
    device = next(network.parameters()).device
    labels = torch.from_numpy(index.labels).long().to(device)
    layers = list(snapshots[0])
    # All epochs of a layer make one large matrix product.
    stacked = {
        layer: tuple(torch.cat([snapshot[layer][part] for snapshot in snapshots]) for part in (0, 1))
        for layer in layers
    }
    starts = range(first, len(index), _IMAGES * ranks.world)
    wholes = [np.arange(start, min(start + _IMAGES * ranks.world, len(index))) for start in starts]
    shares = [np.array_split(whole, ranks.world)[ranks.rank] for whole in wholes]
    # A rank without an image in the last batch processes one that is not counted.
    own = [share if len(share) else whole[:1] for share, whole in zip(shares, wholes, strict=True)]
    for number, (crops, positions) in enumerate(ten_crops(index, network.image_size, resize, own, workers)):
        if test == "center_crop":
            crops = crops[:, _CENTRE : _CENTRE + 1]
        images = normalize(crops.to(device, non_blocking=True).flatten(0, 1))
        truth = labels[positions.to(device, non_blocking=True)]
        found = []
        for layer, features in activations(network, images, layers, precision).items():
            logits = F.linear(features, *stacked[layer]).view(len(positions), crops.shape[1], len(snapshots), -1)
            scores = (logits.softmax(3) if test == "ten_crop_softmax" else logits).mean(1)  # [b, E, K]
            best = scores.topk(min(5, scores.shape[2]), dim=2).indices == truth[:, None, None]
            counted = best[: len(shares[number])]
            found.append(torch.stack([counted[..., 0].sum(0), counted.any(2).sum(0)]))
        yield int(wholes[number][-1]) + 1, ranks.add(torch.stack(found))


class _Decoder(Dataset[tuple[Tensor, Tensor] | str]):
    """Map positions to crops; report an unreadable file as a string, for the main process."""

    def __init__(self, index: Index, size: int, resize: int) -> None:
        self._index, self._size, self._resize = index, size, resize

    def __getitem__(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor] | str:
        crops = np.empty((len(positions), CROPS, 3, self._size, self._size), np.uint8)
        try:
            for slot, position in enumerate(positions):
                image = reader.read_rgb(self._index.file(position))
                crops[slot] = reader.ten_crop(image, self._resize, self._size)
        except InputError as error:
            return str(error)
        return torch.from_numpy(crops), torch.from_numpy(positions)
