"""Stage `protocol`: validates one section of the config and writes it to its own file.

Evaluations read that file instead of the config, so that a changed setting reruns only the evaluation it belongs to.
`--section recipe` does the same for the recipe of a run, and `--section dataset` for a data set.
"""

from __future__ import annotations

import json
from pathlib import Path

from uic_core import recipe
from uic_core.arguments import stage_parser
from uic_core.data.dataset import Dataset
from uic_core.errors import InputError, stage
from uic_core.evaluations import SECTIONS
from uic_core.methods import parse_run


def main(arguments: list[str] | None = None) -> None:
    """Write the section `--section`, given as JSON by `--value`, to `--out` as YAML. Exits with 2 on a wrong value."""
    parser = stage_parser("uic_core.protocol", __doc__)
    parser.add_argument("--section", required=True, help="recipe, dataset, or an evaluation's name")
    parser.add_argument("--value", required=True, help="the section as JSON")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    models: dict[str, type[recipe.Strict]] = {"dataset": Dataset} | SECTIONS
    with stage():
        value = json.loads(options.value)
        if options.section == "recipe":
            recipe.save(parse_run(value, options.section), options.out)
        elif options.section in models:
            recipe.save(recipe.parse(models[options.section], value, options.section), options.out)
        else:
            raise InputError(f"--section: no section '{options.section}' (known: recipe, {', '.join(models)})")


if __name__ == "__main__":
    main()
