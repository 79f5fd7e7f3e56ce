"""results/index.html in a browser, held against the files that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bench.browser import Browser

_LINKS = "return [...document.querySelectorAll('a')].map(each => each.getAttribute('href'))"
_IDS = "return [...document.querySelectorAll('[id]')].map(each => each.id)"
_LOADED = "return [...document.images].every(each => each.naturalWidth > 0)"
# Every number that links to metrics: its text, what stands below it, its value's name, the file that the block names.
_NUMBERS = """
return [...document.querySelectorAll('td a[href^="#run/"]')].map(each => {
  const id = decodeURIComponent(each.hash.slice(1)), block = document.getElementById(id).closest('details');
  return {
    text: each.innerText, name: id.slice(block.id.length + 1),
    table: each.closest('section').id, below: each.parentElement.querySelector('.paper')?.innerText ?? '',
    file: block.querySelector(':scope > p > a[href$=".json"]').getAttribute('href'),
  };
})"""
# Every value of every metrics file: its name and number.
_VALUES = """
return [...document.querySelectorAll('details.evaluation tr[id]')].map(each => {
  const block = each.closest('details');
  return {
    name: each.id.slice(block.id.length + 1), text: each.cells[1].innerText, unit: each.cells[2].innerText,
    file: block.querySelector(':scope > p > a[href$=".json"]').getAttribute('href'),
  };
})"""


def check(reader: Browser, page: Path) -> list[dict[str, Any]]:
    """Follow every link and hold every number against its JSON; return the numbers in tables."""
    reader.open(page)
    ids = reader.run(_IDS)
    assert len(set(ids)) == len(ids)
    for link in reader.run(_LINKS):
        if link.startswith("#"):
            assert unquote(link[1:]) in ids, link
        else:
            assert (page.parent / unquote(link)).is_file(), link
    reader.wait(_LOADED)
    reader.run("for (const each of document.querySelectorAll('details')) each.open = true")  # innerText is what is seen
    values = reader.run(_VALUES)
    for value in values:
        found = _read(page, value)
        assert value["text"] == (f"{found:.2f}" if value["unit"].startswith("%") else f"{found:.6g}"), value
    numbers: list[dict[str, Any]] = reader.run(_NUMBERS)
    for number in numbers:
        shown = re.match(r"\d+(\.(\d+))?", number["text"])
        assert shown, number
        found = _read(page, number)
        assert shown[0] == f"{found:.{len(shown[2])}f}", number
        if below := re.fullmatch(r"\((.+)\) ([+−])([\d.]+)( [✓✗])?", number["below"]):
            difference = float(below[3]) * (-1 if below[2] == "−" else 1)
            assert abs(difference - (found - float(below[1]))) <= 0.5 * 10 ** -len(shown[2]) + 1e-9, number
    assert reader.errors() == []
    return numbers


def _read(page: Path, shown: dict[str, Any]) -> float:
    values = json.loads((page.parent / unquote(shown["file"])).read_text())["values"]
    return float(values[shown["name"]]["value"])
