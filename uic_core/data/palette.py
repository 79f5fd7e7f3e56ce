"""The colours in which PASCAL VOC shows its classes. Imports numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def palette() -> NDArray[np.uint8]:
    """uint8 [256, 3]: the bits of the class number, dealt out to red, green and blue from the top bit down."""
    numbers = np.arange(256)[:, None]
    colours = np.zeros((256, 3), np.uint8)
    for place in range(3):
        bits = numbers >> (3 * place + np.arange(3)) & 1
        colours |= (bits << (7 - place)).astype(np.uint8)
    return colours
