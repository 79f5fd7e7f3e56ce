"""What evaluations of frozen networks ask of their protocol and of their indexes."""

from __future__ import annotations

from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.evaluations import Fewshot, Knn, LinearProbe
from uic_core.recipe import Arch


def layers_of(arch: Arch, protocol: Fewshot | Knn | LinearProbe, section: str, *others: str) -> list[str]:
    """Return the layers that a protocol names for an architecture.

    Args:
        section: the config's, for messages.
        others: further keys that must have the architecture.

    Raises:
        InputError: a key lacks it; names the key and the known architectures.
    """
    for key in ("layers", *others):
        known = getattr(protocol, key)
        if arch not in known:
            raise InputError(f"{section}.{key}: nothing for {arch} (known: {', '.join(known)}); add a line")
    return protocol.layers[arch]


def demand_one_data_set(train: Index, val: Index) -> None:
    """Check that both indexes have the same classes. Raises InputError: they have others; names both."""
    if train.classes != val.classes:
        raise InputError(
            f"{val.name} ({val.root}): its classes are not those of {train.name} ({train.root}); give indexes of one "
            "data set"
        )
