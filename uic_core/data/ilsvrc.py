"""ILSVRC-2012 as it is downloaded, a tar of tars and validation images without folders: the commands that sort it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

_DEVKIT = "ILSVRC2012_devkit_t12"
_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_CLASSES = (
    'for tar in {train}/n*.tar; do mkdir -p "${{tar%.tar}}" && tar -xf "$tar" -C "${{tar%.tar}}" && rm "$tar"; done'
)
# The devkit says each validation image's class number, and each number's name.
_SORT = (
    "tar -xzf {root}/" + _DEVKIT + ".tar.gz -C {root} && python -c '"
    "import os, sys; from scipy.io import loadmat; root = sys.argv[1]; "
    f'data = root + "/{_DEVKIT}/data/"; '
    'names = {{int(each["ILSVRC2012_ID"]): str(each["WNID"]) '
    'for each in loadmat(data + "meta.mat", squeeze_me=True)["synsets"]}}; '
    'truth = open(data + "ILSVRC2012_validation_ground_truth.txt").read().split(); '
    '[os.renames(f"{{root}}/val/{{file}}", f"{{root}}/val/{{names[int(truth[int(file[15:23]) - 1])]}}/{{file}}") '
    'for file in os.listdir(root + "/val") if file.startswith("ILSVRC2012_val_")]'
    "' {root}"
)


def commands(root: Path) -> str:
    """Return what to type to make <root>/train/<class>/ and <root>/val/<class>/; '' if no official file lies there."""
    here = {
        folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in (root, root / "train", root / "val")
    }
    quoted = {"root": shlex.quote(str(root)), "train": shlex.quote(str(root / "train"))}
    steps = []
    for name, split in ((_TRAIN, "train"), (_VAL, "val")):
        tars = [shlex.quote(str(folder / name)) for folder, names in here.items() if name in names]
        folder = shlex.quote(str(root / split))
        steps += [f"mkdir -p {folder} && tar -xf {tar} -C {folder}" for tar in tars[:1]]
        if split == "train" and (tars or any(_is_class_tar(each) for each in here[root / "train"])):
            steps.append(_CLASSES.format(**quoted))
        if split == "val" and (tars or any(each.startswith("ILSVRC2012_val_") for each in here[root / "val"])):
            steps.append(_SORT.format(**quoted))
    if not steps:
        return ""
    devkit = f"with {_DEVKIT}.tar.gz of the same page in {root}, " if any(_DEVKIT in step for step in steps) else ""
    return f"{devkit}unpack what was downloaded: {' && '.join(steps)}"


def _is_class_tar(name: str) -> bool:
    return name.startswith("n") and name.endswith(".tar")
