"""Metrics files with other content, as a stage would have written them."""

from __future__ import annotations

import json
from pathlib import Path

from uic_core.run import metrics


def resealed(text: str) -> str:
    """The JSON of a metrics file, with the checksum that belongs to it."""
    return json.dumps(metrics.sealed(json.loads(text)), indent=2)


def rewrite(path: Path, text: str) -> None:
    """Write such JSON."""
    path.write_text(resealed(text))
