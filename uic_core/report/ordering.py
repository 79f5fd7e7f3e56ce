"""Check from the numbers whether a table's rows have the expected order."""

from __future__ import annotations

import math
from collections.abc import Mapping

from uic_core.report.cells import Table
from uic_core.run.metrics import Value


def note(table: Table, values: Mapping[tuple[str, str], Value], iterations: Mapping[str, int]) -> str:
    """State in which columns `table.ordering` holds, in which it does not, and where noise hides it.

    Args:
        values: (row, column) → our number; columns without a number for each of the rows are skipped.
        iterations: of our trainings, by column, where it has some.

    Returns:
        '' if the table expects no order, or no column has all numbers.
    """
    if table.ordering is None:
        return ""
    above, below = table.ordering.above, table.ordering.below
    shows, fails, hidden = [], [], []
    for column in table.columns:
        known = [values[row, column.name] for row in (above, *below) if (row, column.name) in values]
        if len(known) <= len(below):
            continue
        first, *others = (f"{value.value:.{table.decimals}f}" for value in known)
        told = f"{first} beside {' and '.join(others)}"
        differences = [known[0].value - other.value for other in known[1:]]
        bars = [math.hypot(noise(known[0]), noise(other)) for other in known[1:]]
        if all(difference > bar for difference, bar in zip(differences, bars, strict=True)):
            shows.append(column.name)
        elif any(difference < -bar for difference, bar in zip(differences, bars, strict=True)):
            fails.append(f"{column.name} ({told})")
        else:
            paper = table.ordering.iterations.get(column.name)
            if paper and column.name in iterations:
                told += f"; {iterations[column.name]:,} iterations, the paper's {paper:,}"
            hidden.append(f"{column.name} ({told})")
    said = [
        f"shows in {', '.join(shows)}" if shows else "",
        f"does **not** show in {', '.join(fails)}" if fails else "",
        f"is not resolved at this size in {', '.join(hidden)}" if hidden else "",
    ]
    text = "; it ".join(part for part in said if part)
    return f"The ordering {above} > {' and '.join(below)} {text}." if text else ""


def noise(value: Value) -> float:
    """Half the width of a percentage's 95 % interval, in points: over its n images, and over its seeds if it has some.

    A mean of average precisions has no interval of its own; it is taken as a share of the n images. A number of unknown
    n resolves nothing.
    """
    share = min(max(value.value / 100, 0.0), 1.0)
    over_images = 196 * math.sqrt(share * (1 - share) / value.n) if value.n else math.inf
    over_seeds = 1.96 * value.std if value.std is not None else 0.0
    return max(over_images if value.ci95 is None else value.ci95, over_seeds)
