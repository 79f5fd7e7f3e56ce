"""Random numbers: seeding, and numbers that depend on (seed, epoch, image) only."""

from __future__ import annotations

import os
import random
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from uic_core.errors import InputError


class Stream(IntEnum):
    """The random streams of a run: with its seed each gives other numbers. A new one takes a number of its own.

    Small ones follow the seed in numpy's seeds. Large ones are added to the seed of `uniforms`, whose plain seed is the
    augmentation's.
    """

    GROUPS = 1  # which images fill empty classes
    ORDER = 2
    STEP = 3  # torch's, e.g. dropout
    CLUSTERING = 4
    LABELS = 5
    LABEL_PASS = 6
    BALANCED_LABELS = 7
    CROPS = 1 << 32
    DRAWS = 1 << 33
    LABEL_VIEWS = 1 << 34


def deterministic() -> bool:
    """True if torch should use deterministic kernels: always on a CPU, on a GPU if UIC_DETERMINISTIC is 1.

    It is not a config setting: results depend on it by rounding only, so a change reruns nothing.

    Raises:
        InputError: UIC_DETERMINISTIC is neither 0 nor 1.
    """
    import torch  # imported here: the workflow imports this file through the methods, but must not load torch

    asked = os.environ.get("UIC_DETERMINISTIC", "0")
    if asked not in ("0", "1"):
        raise InputError(f"UIC_DETERMINISTIC: is '{asked}' in the environment; set it to 0 or 1")
    return asked == "1" or not torch.cuda.is_available()


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. With `deterministic` kernels, one seed gives the same bytes on one machine.

    Also disables TF32. cuDNN would round float32 to 10 bits in convolutions, and so would cuBLAS in NVIDIA's
    containers, which set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    exact = deterministic()
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A few operators have no deterministic kernel on a GPU: torch then only warns. `use_deterministic_algorithms` does
    # the same, but first imports torch's compiler, for a second or more of each job.
    torch.set_deterministic_debug_mode("warn" if exact else "default")
    # The call above also makes torch fill new memory, in case it is read before it is written: a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed_torch(*entropy: int) -> None:
    """Seed torch's generators from several numbers, e.g. seed, stream, epoch, step, rank."""
    import torch

    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


def uniforms(seed: int, epoch: int, images: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on (seed, epoch, image) only.

    A counter-based generator (the splitmix64 finaliser, Steele et al. 2014). It has no state, so crops are the same
    for any number of workers, ranks or restarts.

    Args:
        images: image positions in the index, shape [B].
        count: numbers per image.

    Returns:
        float64 array [B, count].
    """

    def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = mix(np.array([seed], np.uint64) * golden + np.uint64(1))
        key = mix(key + np.array([epoch], np.uint64) * golden + np.uint64(2))
        keys = mix(key + np.asarray(images).astype(np.uint64) * golden + np.uint64(3))
        bits = mix(keys[:, None] + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * golden)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
