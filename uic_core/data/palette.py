"""PASCAL VOC's class colours. Imports only numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def palette() -> NDArray[np.uint8]:
    """Return uint8 [256, 3]: the class number's bits go to red, green and blue in turn and fill them from the top."""
    numbers = np.arange(256)[:, None]
    colours = np.zeros((256, 3), np.uint8)
    for place in range(3):
        bits = numbers >> (3 * place + np.arange(3)) & 1
        colours |= (bits << (7 - place)).astype(np.uint8)
    return colours
