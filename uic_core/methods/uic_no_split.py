"""UIC without the splitting of large classes: a class that runs empty stays empty (what section 4.2 warns of)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from uic_core.methods import uic


class UicNoSplit(uic.Uic):
    """A run of UIC that leaves empty classes empty."""

    method: Literal["uic_no_split"]  # type: ignore[assignment]


METHOD = replace(uic.METHOD, recipe=UicNoSplit, fill_empty=None)
