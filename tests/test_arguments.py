"""The arguments of all stages."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "uic_core").rglob("*.py")
    if "\ndef main(" in path.read_text()
)


@pytest.mark.parametrize("module", sorted({*MODULES} - {"uic_core.run.torchrun"}))  # it has torchrun's own
def test_the_usage_of_a_stage_can_be_typed(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(place).main(["--help"])
    assert stop.value.code == 0
    assert " ".join(capsys.readouterr().out.split()).startswith(f"usage: python -m {module} [-h]")
