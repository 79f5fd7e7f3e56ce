"""Passes of the network for labels, between two steps: over centre crops, and over training views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uic_core.data.augment import UNIFORMS, normalize
from uic_core.data.partition import Labels
from uic_core.data.resident import AnyLoader
from uic_core.methods.method import Method
from uic_core.methods.order import Permutation
from uic_core.models.network import Network
from uic_core.recipe import Training
from uic_core.run import randomness, scratch
from uic_core.run.parallel import Ranks

_MEMORY = 16 << 30  # bytes of a matrix in memory, over all processes: a quarter of what the job asks for


class LabelPasses:
    """Access of a method to the network between two steps; implements uic_core.methods.method.Inference.

    Passes over centre crops compute in float32 at any training precision, as DeepCluster's code does: in bf16 an image
    near the border of two classes would change class.

    Args:
        images: number of images in the loader's index.
        pause: saves and ends if a signal came; called for each batch.
        threads: CPUs for work of rank 0 while all others wait.

    Attributes:
        inputs: number of images that all passes saw, over all ranks.
        moment: steps of the run before this moment: the number of a pass, from which its randomness follows.
        folder: where matrices lie that do not fit into memory.
    """

    def __init__(
        self, recipe: Training, method: Method[Any], network: Network, loader: AnyLoader, images: int, ranks: Ranks,
        device: torch.device, pause: Callable[[], None], say: Callable[[str], None], threads: int,
    ) -> None:  # fmt: skip
        self._recipe, self._method, self._network, self._loader = recipe, method, network, loader
        self._images, self._device = images, device
        self.top, self.ranks, self.pause, self.say, self.threads = network.top, ranks, pause, say, threads
        self.inputs, self.moment, self.folder = 0, 0, Path()

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
        self.ranks.broadcast(found, self._device)

    @torch.no_grad()
    def embed_share(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Features before the top layer of this rank's images, and their positions: see Inference."""
        positions = np.concatenate([part[self.ranks.rank] for part in self._parts()])
        features = self.matrix(len(positions), self._network.embedding_size, torch.float32)
        done = 0
        for _, rows in self._outputs(self._network.embed):
            features[done : done + len(rows)] = rows
            done += len(rows)
        return features, positions

    @torch.no_grad()
    def training_features(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Features that the top layer sees, from a pass over the training views: see Inference."""
        recipe, number, rank = self._recipe, self.moment, self.ranks.rank
        seed = recipe.seed + randomness.Stream.LABEL_VIEWS
        order = Permutation(self._images, seed, number)
        parts = self._parts()
        # In a small last batch some ranks have no image; rank 0 always has one.
        own = [order(part[rank]) for part in parts if len(part[rank])]
        positions = np.concatenate(own)
        # A head's batch norm takes two images or more: one that is alone there has this rank's first image beside it.
        read = [part if len(part) > 1 else np.append(part, positions[0]) for part in own]
        width = self._network.embedding_size
        features = scratch.matrix(len(positions), width, torch.float16, self.folder, scratch.EXACT, torch.device("cpu"))
        self.ranks.align(self._network)
        self._network.train()
        done = 0
        for batch, (crops, draws) in enumerate(self._loader.stream(read, "resized_crop", seed, number)):
            self.pause()
            randomness.seed_torch(recipe.seed, randomness.Stream.LABEL_PASS, number, batch, rank)  # dropout's
            x = self._method.views(recipe, crops, randomness.uniforms(seed, number, draws, UNIFORMS))
            x = x.contiguous(memory_format=torch.channels_last)
            rows = self._network.hidden(x)[: len(own[batch])]
            features[done : done + len(rows)] = rows.to(features.dtype)  # before the copy, which takes half the bytes
            done += len(rows)
        for _ in parts[len(own) :]:
            self.pause()  # as often as the other ranks
        self.inputs += self._images
        return features, positions

    def matrix(self, rows: int, width: int, short: torch.dtype) -> Tensor:
        """Memory for a while: see Inference."""
        return scratch.matrix(rows, width, short, self.folder, _MEMORY // self.ranks.world, self._device)

    @torch.no_grad()
    def _pass(self, function: Callable[[Tensor], Tensor], *, everywhere: bool) -> NDArray[Any] | None:
        found: NDArray[Any] | None = None
        for part, rows in self._outputs(function):
            values = self.ranks.gather(rows, [len(positions) for positions in part])
            if not everywhere and self.ranks.rank:
                continue
            if found is None:  # allocated only once: DeepCluster's features are 21 GB on ImageNet
                found = np.empty((self._images, *values.shape[1:]), values.cpu().numpy().dtype)
            found[part[0][0] : part[0][0] + len(values)] = values.cpu().numpy()
        return found

    def _parts(self) -> list[list[NDArray[np.int64]]]:
        """Positions of each batch, by rank."""
        return [
            np.array_split(np.arange(start, min(start + self._recipe.batch_size, self._images)), self.ranks.world)
            for start in range(0, self._images, self._recipe.batch_size)
        ]

    def _outputs(self, function: Callable[[Tensor], Tensor]) -> Iterator[tuple[list[NDArray[np.int64]], Tensor]]:
        """Yield each batch's positions by rank, and the function's rows of this rank's images."""
        self.ranks.align(self._network)
        self._network.eval()
        parts, rank = self._parts(), self.ranks.rank
        # A rank without an image in the last batch computes one and drops it.
        own = (part[rank] if len(part[rank]) else part[0][:1] for part in parts)
        for part, (crops, _) in zip(parts, self._loader.stream(own, "center_crop", 0, 0), strict=True):
            self.pause()
            x = normalize(crops).contiguous(memory_format=torch.channels_last)
            rows = function(x)[: len(part[rank])]
            self.inputs += sum(map(len, part))
            yield part, rows
