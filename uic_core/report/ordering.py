"""Check from the numbers whether a table's rows have the expected order."""

from __future__ import annotations

from collections.abc import Mapping

from uic_core.report.cells import Table


def note(table: Table, values: Mapping[tuple[str, str], float]) -> str:
    """State in which columns `table.ordering` holds and in which it does not; '' if the table expects none.

    Args:
        values: (row, column) → our number; columns without a number for each of the rows are skipped.
    """
    if table.ordering is None:
        return ""
    above, below = table.ordering.above, table.ordering.below
    shows, fails = [], []
    for column in table.columns:
        numbers = [values.get((row, column.name)) for row in (above, *below)]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            continue
        if known[0] > max(known[1:]):
            shows.append(column.name)
        else:
            told = " and ".join(f"{number:.{table.decimals}f}" for number in known[1:])
            fails.append(f"{column.name} ({known[0]:.{table.decimals}f} beside {told})")
    said = [
        f"shows in {', '.join(shows)}" if shows else "",
        f"does **not** show in {', '.join(fails)}" if fails else "",
    ]
    text = "; it ".join(part for part in said if part)
    return f"The ordering {above} > {' and '.join(below)} {text}." if text else ""
