"""What a file that should be a checkpoint is, by its first bytes; how its weights become a file that can be read.

Nothing of the file is unpickled or run here. Every remedy is followed by a test.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from uic_core.errors import InputError
from uic_core.files import DAMAGED

Kind = Literal["safetensors", "torch", "pickle", "unknown"]

_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's first pickle, before its zip files
_ANSWER = re.compile(rb'(\xef\xbb\xbf)?\s*(<(!doctype|!--|\?xml|html|head|error)|\{\s*")', re.IGNORECASE)
_ONLY = "only PyTorch's and safetensors files can be read"
_FORMATS = {
    b"\x89HDF": "HDF5, as of Keras",
    b"MATLAB ": "a MAT-file of MATLAB",
    b"GGUF": "GGUF, as of llama.cpp",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
}
_SAVE = 'torch.save({{name: torch.as_tensor(value) for name, value in {items} if {known}}}, "new.pth")'
_ARRAY = 'isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf"'
_FROM_ARRAYS = "python -c '" + (
    "import numpy, torch; " + _SAVE.format(items='numpy.load("old.npz").items()', known=_ARRAY) + "'"
)
_FROM_SCRIPT = (
    'python -c \'import torch; torch.save(torch.jit.load("old.pt", map_location="cpu").state_dict(), "new.pth")\''
)


def kind(path: Path) -> Kind:
    """Tell how the weights of a file can be read.

    Raises:
        InputError: it is no checkpoint, but a web page, an archive …; says what it is, and what to do.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path}: is empty; fetch it again")
    if _ANSWER.match(head) and b"\0" not in head[:8]:  # the length of a safetensors header, which may look like {"
        raise InputError(
            f"{path}: is a web page or a server's error, no checkpoint: open it in a browser, it says why (often a "
            "page to log in or to confirm); fetch the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a pointer of Git LFS, no checkpoint; fetch the file itself: git lfs pull")
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(f"{path}: is compressed by {name}; unpack it, and name the checkpoint in it as `path`")
    if head[257:262] == b"ustar":
        raise InputError(f"{path}: is a tar archive; unpack it (tar -xf), and name the checkpoint in it as `path`")
    for magic, name in _FORMATS.items():
        if head.startswith(magic):
            raise InputError(f"{path}: is {name}; {_ONLY}")
    if head.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: is a single NumPy array, no weights by name; fetch the checkpoint itself")
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(path)
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(_TORCH):
        return "torch"
    return "pickle" if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" else "unknown"


def instead(kind: Kind) -> str:
    """The remedy for a file that its reader cannot open: without known first bytes it is likely of another format."""
    return f"{_ONLY}: fetch one of these" if kind == "unknown" else "fetch it again"


def save_tensors(kind: Kind) -> str:
    """The command that saves the weights of a trusted pickle alone: of a state dict, a module, or arrays of NumPy."""
    loaded = 'pickle.load(open("old.pth", "rb"))'
    if kind == "torch":
        loaded = 'torch.load("old.pth", map_location="cpu", weights_only=False)'
    bare = 'old = getattr(old, "state_dict", lambda: old)(); '
    known = f"torch.is_tensor(value) or {_ARRAY}"
    return (
        f"python -c 'import numpy, pickle, torch; old = {loaded}; {bare}"
        f'old = old.get("state_dict", old.get("model", old)); {bare}{_SAVE.format(items="old.items()", known=known)}\''
    )


def _of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGED:
        return "torch"  # truncated or damaged: torch says so
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path}: is TorchScript, a program with weights. If you trust it, save the weights alone: {_FROM_SCRIPT}"
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        raise InputError(f"{path}: holds arrays of NumPy; save them as tensors: {_FROM_ARRAYS}")
    raise InputError(
        f"{path}: is a zip archive ({', '.join(names[:3])}{', …' * (len(names) > 3)}), no PyTorch file; unpack it, and "
        "name the checkpoint in it as `path`"
    )
