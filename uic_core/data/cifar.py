"""CIFAR-10's own files as class folders of PNGs: train/<class>/<number>.png and val/<class>/<number>.png.

Reads the "python version", data_batch_1 … 5, test_batch and batches.meta, as torchvision downloads it
(cifar-10-batches-py). Those files are pickles. Only arrays, numbers, texts and their containers are taken from them.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.files import atomic_folder

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_SIDE = 32
# What a pickled array of bytes is made of, under NumPy's old name and its new one.
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


class _Arrays(pickle.Unpickler):
    """Refuses everything but arrays: a pickle can name any function, and unpickling would call it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read(file: Path) -> Mapping[bytes, Any]:
    """Read one of the pickles.

    Raises:
        InputError: it is missing or damaged, or holds something else than arrays and texts.
    """
    remedy = "fetch the python version of CIFAR-10 again and unpack it"
    try:
        with open(file, "rb") as opened:
            found = _Arrays(opened, encoding="bytes").load()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); {remedy}") from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(f"{file}: is not one of CIFAR-10's files ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: is not one of CIFAR-10's files (a {type(found).__name__}); {remedy}")
    return found


def write(batches: Path, out: Path, *, held_out: bool = False) -> dict[str, int]:
    """Write the images of CIFAR-10 as class folders. A split that is there is whole, and is left as it is.

    Args:
        held_out: `val` is the last fifth of the training images, which `train` lacks, and not the test images.

    Returns:
        Number of images per split that was written.

    Raises:
        InputError: from `read`; or a file has other arrays than CIFAR-10's; or nothing can be written.
    """
    names = [name.decode() for name in read(batches / "batches.meta").get(b"label_names", [])]
    if not names or not all(name.isalnum() for name in names):
        raise InputError(f"{batches / 'batches.meta'}: names no classes; fetch the python version of CIFAR-10 again")
    counts = {}
    train, val = (TRAIN[:-1], TRAIN[-1:]) if held_out else (TRAIN, ("test_batch",))
    for split, files in (("train", train), ("val", val)):
        if not (out / split).exists():
            with atomic_folder(out / split) as partial:
                counts[split] = _write_split(batches, files, names, partial)
    return counts


def _write_split(batches: Path, files: Sequence[str], names: list[str], folder: Path) -> int:
    """Write the images of some batches to <folder>/<class>/<number>.png; return how many."""
    for name in names:
        (folder / name).mkdir(parents=True)
    number = 0
    for file in files:
        content = read(batches / file)
        pixels, labels = (np.asarray(content.get(key)) for key in (b"data", b"labels"))
        whole = pixels.dtype == np.uint8 and pixels.shape == (labels.size, 3 * _SIDE**2)
        if not whole or not all(label in range(len(names)) for label in labels.tolist()):
            raise InputError(f"{batches / file}: holds no images of 32×32 pixels with labels; fetch it again")
        for image, label in zip(pixels.reshape(-1, 3, _SIDE, _SIDE), labels.tolist(), strict=True):
            path = folder / names[label] / f"{number:05}.png"
            Image.fromarray(image.transpose(1, 2, 0)).save(path, compress_level=1)
            number += 1
    return number


def main(arguments: list[str] | None = None) -> None:
    """Write CIFAR-10's own files as class folders."""
    parser = stage_parser("uic_core.data.cifar", __doc__)
    parser.add_argument("--batches", type=Path, required=True, help="the folder cifar-10-batches-py")
    parser.add_argument("--out", type=Path, required=True, help="datasets.folders.cifar10.root")
    parser.add_argument("--held-out", action="store_true", help="val is a fifth of the training images: to choose by")
    options = parser.parse_args(arguments)
    with stage():
        written = write(options.batches, options.out, held_out=options.held_out)
        for split in ("train", "val"):
            there = f"{written[split]} images" if split in written else "already there"
            print(f"{options.out / split}: {there}")


if __name__ == "__main__":
    main()
