"""Passes of the network for labels, between two steps: over centre crops, and over training views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uic_core.data.augment import UNIFORMS
from uic_core.data.resident import AnyLoader
from uic_core.methods.method import Method
from uic_core.methods.order import Permutation
from uic_core.models.network import Network
from uic_core.pretrain.centre_crops import CentreCrops
from uic_core.recipe import Training
from uic_core.run import randomness, scratch
from uic_core.run.parallel import Ranks

_MEMORY = 16 << 30  # bytes of a matrix in memory, over all processes: a quarter of what the job asks for


class LabelPasses(CentreCrops):
    """All passes that a method can ask for; implements uic_core.methods.method.Inference.

    Attributes:
        moment: steps of the run before this moment: the number of a pass, from which its randomness follows.
        folder: where matrices lie that do not fit into memory.
    """

    def __init__(
        self, recipe: Training, method: Method[Any], network: Network, loader: AnyLoader, images: int, ranks: Ranks,
        device: torch.device, pause: Callable[[], None], say: Callable[[str], None], threads: int,
    ) -> None:  # fmt: skip
        super().__init__(network, loader, images, recipe.batch_size, ranks, device, pause, threads)
        self._recipe, self._method = recipe, method
        self.top, self.ranks, self.say = network.top, ranks, say
        self.moment, self.folder = 0, Path()

    @torch.no_grad()
    def embed_share(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Features before the top layer of this rank's images, and their positions: see Inference."""
        positions = np.concatenate([part[self._ranks.rank] for part in self._parts()])
        features = self.matrix(len(positions), self._network.embedding_size, torch.float32)
        done = 0
        for _, rows in self._outputs(self._network.embed):
            features[done : done + len(rows)] = rows
            done += len(rows)
        return features, positions

    @torch.no_grad()
    def training_features(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Features that the top layer sees, from a pass over the training views: see Inference."""
        recipe, number, rank = self._recipe, self.moment, self._ranks.rank
        seed = recipe.seed + randomness.Stream.LABEL_VIEWS
        order = Permutation(self._images, seed, number)
        starts = range(0, self._images, self._batch_size)
        batches = [np.arange(start, min(start + self._batch_size, self._images)) for start in starts]
        # In a small last batch some ranks have no image; rank 0 always has one.
        own = [order(part) for batch in batches if len(part := np.array_split(batch, self._ranks.world)[rank])]
        positions = np.concatenate(own)
        width = self._network.embedding_size
        features = scratch.matrix(len(positions), width, torch.float16, self.folder, scratch.EXACT, torch.device("cpu"))
        self._ranks.align(self._network)
        self._network.train()
        done = 0
        for batch, (crops, draws) in enumerate(self._loader.stream(own, "resized_crop", seed, number)):
            self.pause()
            randomness.seed_torch(recipe.seed, randomness.Stream.LABEL_PASS, number, batch, rank)  # dropout's
            x = self._method.views(recipe, crops, randomness.uniforms(seed, number, draws, UNIFORMS))
            x = x.contiguous(memory_format=torch.channels_last)
            features[done : done + len(draws)] = self._network.hidden(x)
            done += len(draws)
        for _ in batches[len(own) :]:
            self.pause()  # as often as the other ranks
        self.inputs += self._images
        return features, positions

    def matrix(self, rows: int, width: int, short: torch.dtype) -> Tensor:
        """Memory for a while: see Inference."""
        return scratch.matrix(rows, width, short, self.folder, _MEMORY // self._ranks.world, self._device)
