"""Read MATLAB's .mat files: SBD's masks and the original proposals. Arrays only; the files are not trusted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from uic_core.errors import InputError


def variables(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """Read variables as scipy returns them: a cell array has dtype object, a struct has fields.

    Raises:
        InputError: the file is missing, not MATLAB (or version 7.3, which is HDF5), or lacks one of the variables.
    """
    from scipy.io import loadmat  # imported here, as few stages need it and the import is slow

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    try:
        found = loadmat(io.BytesIO(data), variable_names=names)
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(
            f"{path}: is no MATLAB file of version 7 or before ({type(error).__name__}: {error}); copy it again"
        ) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path}: has no variable {' and no '.join(missing)}; another kind of file was expected here")
    return {name: found[name] for name in names}
