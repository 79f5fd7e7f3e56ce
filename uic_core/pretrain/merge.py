"""Merge the labels that the ranks learned."""

from __future__ import annotations

import numpy as np
import torch

from uic_core.data.partition import Labels
from uic_core.methods.order import Order
from uic_core.run.parallel import Ranks

_TOGETHER = 256  # batches whose draws are processed together


def merge_labels(
    labels: Labels, order: Order, bounds: list[tuple[int, int]], ranks: Ranks, device: torch.device
) -> None:
    """Merge the labels that each rank wrote for its draws of the batches so far, in place.

    An image's label is the one of its last draw. Every rank knows the order, so it knows which rank drew an image
    last. That rank keeps its label, all others write 0, and the sum over the ranks is the label. Each rank sends and
    receives 4 N bytes.

    Args:
        labels: int32 [N], the same on all ranks except for what each wrote.
        bounds: first and last draw of each batch, as `Ranks.bounds` gives them.
    """
    if ranks.world == 1:
        return
    owner = np.zeros(len(labels), np.uint16)  # 0 for images that no rank drew: their label is the same on all
    for start in range(0, len(bounds), _TOGETHER):
        block = bounds[start : start + _TOGETHER]
        draws, _ = order.draw(block[0][0], block[-1][1])
        owner[draws % len(labels)] = np.concatenate(
            [np.repeat(np.arange(ranks.world), (last - first) // ranks.world) for first, last in block]
        )
    labels[owner != ranks.rank] = 0
    ranks.sum_array(labels, device)
