"""Whether every cell of the tables can be filled by a config and the paper's numbers, before the first job.

Imports no torch, because the workflow checks this while it builds its plan.
"""

from __future__ import annotations

from pathlib import Path

from uic_core.config import Config
from uic_core.errors import InputError
from uic_core.report.cells import Switch, Table, read_figures, read_tables
from uic_core.report.published import read_published


def check_cells(tables_yaml: Path, config: Config) -> None:
    """Check that every cell can be filled, computed or published; else the error would appear only after the last job.

    Raises:
        InputError: a cell's run is not in the config; its evaluation does not make its value, or not in percent, or
            not of that layer; it needs the pseudo-labels of a run that has none; it needs detection or segmentation of
            an architecture that these do not support, or segmentation with too small a padding. Or a switch does not
            explain the config's setting.
    """
    for drawn, figure in read_figures(tables_yaml).items():
        if reason := config.refuses(figure.run, "clusters"):
            raise InputError(f"{tables_yaml}: figures.{drawn}.run: {reason}")
    tables = read_tables(tables_yaml, config.computable)
    for number, table in tables.items():
        for (row, column), source in table.sources().items():
            where = f"{tables_yaml}: tables.{number}: row '{row}', column '{column}'"
            if source.run not in config.runs:
                raise InputError(
                    f"{where}: takes cells from runs that the config lacks: {source.run}; add them under runs: "
                    f"(known: {', '.join(config.runs)})"
                )
            if reason := config.refuses(source.run, source.evaluation):
                raise InputError(f"{where}: {reason}, or name the column under `absent` of its row")
            run, section = config.runs[source.run], config.evaluations.one(source.evaluation)
            values = section.values_of(run.arch)
            if values and source.value not in values:
                by_layer = "layers" in type(section).model_fields
                raise InputError(
                    f"{where}: takes '{source.value}', which evaluations.{source.evaluation}"
                    f"{f'.layers.{run.arch}' * by_layer} of the config does not make "
                    f"(it makes, in %: {', '.join(values)}); {'add the layer there, or ' * by_layer}correct the cell"
                )
        for switch in table.switches:
            _explains(f"{tables_yaml}: tables.{number}.switches", switch, table, config)
    for number, table in tables.items():
        read_published(config.published_file, number, table)


def _explains(where: str, switch: Switch, table: Table, config: Config) -> None:
    """Check that a switch explains what the metrics of the table's runs will hold."""
    for source in table.sources().values():
        if source.evaluation != switch.evaluation:
            continue
        arch, protocol = config.runs[source.run].arch, config.evaluations.one(switch.evaluation).model_dump()
        by_arch = protocol.get(switch.key)
        if isinstance(by_arch, dict) and arch in by_arch:  # metrics hold the architecture's alone
            protocol[switch.key] = by_arch[arch]
            if protocol[switch.key] == 0:  # all images, and metrics hold how many these are
                continue
        setting = switch.setting(protocol)
        if setting not in switch.says:
            raise InputError(
                f"{where}: {switch.key} of evaluations.{switch.evaluation} is {setting} in the config, which `says` "
                f"does not explain (known: {', '.join(switch.says)}); add a line there, '' if there is nothing to say"
            )
