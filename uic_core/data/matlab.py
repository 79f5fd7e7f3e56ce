"""MATLAB's .mat files: SBD's masks and the original proposals. Arrays only; everything read here is hostile."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from uic_core.errors import InputError


def variables(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """Read variables as scipy gives them: a cell array has dtype object, a struct has fields.

    Raises:
        InputError: missing, no MATLAB file (or one of version 7.3, which is HDF5), or without one of the variables.
    """
    from scipy.io import loadmat  # here and not above: few stages read such files, and it takes a while to import

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    try:
        found = loadmat(io.BytesIO(data), variable_names=names)
    except Exception as error:  # a damaged file raises whatever its reader stumbled over
        raise InputError(
            f"{path}: is no MATLAB file of version 7 or before ({type(error).__name__}: {error}); copy it again"
        ) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path}: has no variable {' and no '.join(missing)}; another kind of file was expected here")
    return {name: found[name] for name in names}
