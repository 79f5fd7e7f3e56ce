"""ILSVRC-2012 as it is downloaded, a tar of tars and validation images without folders: the commands that sort it."""

from __future__ import annotations

import shlex
from pathlib import Path

_DEVKIT = "ILSVRC2012_devkit_t12"
_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_CLASSES = (
    'for tar in {folder}/n*.tar; do mkdir -p "${{tar%.tar}}" && tar -xf "$tar" -C "${{tar%.tar}}" && rm "$tar"; done'
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
    """Return what to type to make <root>/train/<class>/ and <root>/val/<class>/; '' if all that was downloaded is."""
    steps = []
    for split, archive, kept, sort in (("train", _TRAIN, "n*.tar", _CLASSES), ("val", _VAL, "ILSVRC2012_val_*", _SORT)):
        folder, tar = root / split, root / archive
        if any(folder.glob(kept)):
            unpack = ""
        elif tar.is_file() and not any(each.is_dir() for each in folder.glob("*")):
            unpack = "mkdir -p {folder} && tar -xf {tar} -C {folder} && "
        else:
            continue
        paths = {"root": root, "folder": folder, "tar": tar}
        steps.append((unpack + sort).format(**{name: shlex.quote(str(path)) for name, path in paths.items()}))
    if not steps:
        return ""
    devkit = f"with {_DEVKIT}.tar.gz of the same page in {root}, " if _DEVKIT in steps[-1] else ""
    return f"{devkit}unpack what was downloaded: {' && '.join(steps)}"
