"""The paper's numbers: config/published.csv, checked against the rows and columns of the tables. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from uic_core.errors import InputError
from uic_core.files import read_csv
from uic_core.report.cells import Table, demand_known

PUBLISHED_HEADER = ("table", "row", "column", "value", "source")


@dataclass(frozen=True)
class Published:
    """A number of the paper: `text` as printed, `source` 'paper' or the cited work."""

    text: str
    source: str


def read_published(path: Path, number: int, table: Table) -> dict[tuple[str, str], Published]:
    """Read the paper's numbers of one table: (row name, column name) → number as printed.

    Raises:
        InputError: the header is wrong, a value is not a number, a cell occurs twice, a row or column is unknown (names
            file and line); or a computed row has a number that nothing computes, a computed cell or a cited row has no
            number in the paper.
    """
    published: dict[tuple[str, str], Published] = {}
    for line, record in _records(path):
        if record["table"] != str(number):
            continue
        where = f"{path}:{line}"
        key = (record["row"], record["column"])
        demand_known(where, "row", key[0], [row.name for row in table.rows])
        demand_known(where, "column", key[1], [column.name for column in table.columns if not column.text])
        if key in published:
            raise InputError(f"{where}: table {number}, '{key[0]}', '{key[1]}' stands twice; remove one of the lines")
        published[key] = Published(record["value"], record["source"])
    _agree(path, number, table, published)
    return published


def _records(path: Path) -> list[tuple[int, dict[str, str]]]:
    records = read_csv(path, PUBLISHED_HEADER)
    for line, record in records:
        if not (record["table"].isascii() and record["table"].isdigit()):
            raise InputError(f"{path}:{line}: table '{record['table']}' is no number; write the table's")
        if not _is_number(record["value"]):
            raise InputError(f"{path}:{line}: value '{record['value']}' is no number; leave out what is not printed")
        if float(record["value"]) > 100:
            raise InputError(f"{path}:{line}: value {record['value']} is no percentage; look at its decimal point")
        if not record["source"]:
            raise InputError(f"{path}:{line}: source is empty; write 'paper' or the cited work")
    return records


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) is not None


def _agree(path: Path, number: int, table: Table, published: dict[tuple[str, str], Published]) -> None:
    """Check that rows run here compute exactly the cells that the paper prints, and that cited rows have numbers.

    An optional row may compute more, and cites what it cannot compute.
    """
    sources = table.sources()
    for row in table.rows:
        printed = {name for row_name, name in published if row_name == row.name}
        computed = {name for row_name, name in sources if row_name == row.name}
        where = f"{path}: table {number}, row '{row.name}'"
        if row.extra:
            if printed:
                raise InputError(
                    f"{where}: has numbers, but its `extra: true` says that the paper has none; remove one of the two"
                )
        elif not printed:
            raise InputError(
                f"{where}: has no number; add its lines here, or remove the row from the config's `tables`"
            )
        elif row.run and not row.optional and printed != computed:
            name = sorted(printed ^ computed)[0]
            said = "has a number that nothing computes" if name in printed else "is computed but has no number"
            raise InputError(
                f"{where}: column '{name}' {said}; mend `absent` in the config's `tables`, or the lines here"
            )
