"""Whether rows of a table stand in the order that they are expected to: said by the numbers, not by prose."""

from __future__ import annotations

from collections.abc import Mapping

from uic_core.report.cells import Table


def note(table: Table, values: Mapping[tuple[str, str], float]) -> str:
    """In which columns `table.ordering` shows and in which it does not; '' where the table expects none.

    Args:
        values: (row, column) → our number; columns that lack one of the rows are left out.
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
