"""Passes of the network over centre crops of all images, between two epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uic_core.data.augment import normalize
from uic_core.data.partition import Labels
from uic_core.data.resident import AnyLoader
from uic_core.models.network import Network
from uic_core.run.parallel import Ranks


class CentreCrops:
    """Access of a method to the network between two epochs; implements uic_core.methods.method.Inference.

    Computes in float32 at any training precision, as DeepCluster's code does: in bf16 an image near the border of two
    classes would change class.

    Args:
        images: number of images in the loader's index.
        batch_size: images per batch over all ranks.
        pause: saves and ends if a signal came; called for each batch.
        threads: CPUs for work of rank 0 while all others wait.

    Attributes:
        inputs: number of images that all passes saw, over all ranks.
    """

    def __init__(
        self, network: Network, loader: AnyLoader, images: int, batch_size: int, ranks: Ranks,
        device: torch.device, pause: Callable[[], None], threads: int,
    ) -> None:  # fmt: skip
        self._network, self._loader, self._images, self._batch_size = network, loader, images, batch_size
        self._ranks, self._device = ranks, device
        self.pause, self.threads = pause, threads
        self.inputs = 0

    def predict(self) -> Labels:
        """Argmax of the logits of all images, int32 [N], the same on every rank."""
        found = self._pass(lambda x: self._network(x).argmax(1).to(torch.int32), everywhere=True)
        assert found is not None
        return found

    def embed(self) -> NDArray[np.float32] | None:
        """Features before the top layer, float32 [N, D]; None on all ranks but 0."""
        return self._pass(self._network.embed, everywhere=False)

    def share(self, found: Labels) -> None:
        """Copy rank 0's array to all ranks, in place."""
        self._ranks.broadcast(found, self._device)

    @torch.no_grad()
    def _pass(self, function: Callable[[Tensor], Tensor], *, everywhere: bool) -> NDArray[Any] | None:
        found: NDArray[Any] | None = None
        for part, rows in self._outputs(function):
            values = self._ranks.gather(rows, [len(positions) for positions in part])
            if not everywhere and self._ranks.rank:
                continue
            if found is None:  # allocated only once: DeepCluster's features are 21 GB on ImageNet
                found = np.empty((self._images, *values.shape[1:]), values.cpu().numpy().dtype)
            found[part[0][0] : part[0][0] + len(values)] = values.cpu().numpy()
        return found

    def _parts(self) -> list[list[NDArray[np.int64]]]:
        """Positions of each batch, by rank."""
        return [
            np.array_split(np.arange(start, min(start + self._batch_size, self._images)), self._ranks.world)
            for start in range(0, self._images, self._batch_size)
        ]

    def _outputs(self, function: Callable[[Tensor], Tensor]) -> Iterator[tuple[list[NDArray[np.int64]], Tensor]]:
        """Yield each batch's positions by rank, and the function's rows of this rank's images."""
        self._ranks.align(self._network)
        self._network.eval()
        parts, rank = self._parts(), self._ranks.rank
        # A rank without an image in the last batch computes one and drops it.
        own = (part[rank] if len(part[rank]) else part[0][:1] for part in parts)
        for part, (crops, _) in zip(parts, self._loader.stream(own, "center_crop", 0, 0), strict=True):
            self.pause()
            x = normalize(crops).contiguous(memory_format=torch.channels_last)
            rows = function(x)[: len(part[rank])]
            self.inputs += sum(map(len, part))
            yield part, rows
