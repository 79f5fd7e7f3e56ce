"""Arguments that several stages of the report have."""

from __future__ import annotations

import argparse

import pytest

from uic_core.report.arguments import add_recipes, add_scale


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_scale(parser)
    add_recipes(parser)
    return parser.parse_args(["--scale", "demo", *words])


def test_recipes_are_a_dictionary() -> None:
    assert parse().recipes == {}
    assert parse("--recipes").recipes == {}
    assert parse("--recipes", "uic_3k=00ff", "b=1").recipes == {"uic_3k": "00ff", "b": "1"}


def test_what_is_no_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--recipes", "uic_3k=00ff", "b")
    assert stop.value.code == 2
    assert "--recipes: 'b' is not run=hash" in capsys.readouterr().err
