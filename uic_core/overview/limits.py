"""How long a job asks for: what it takes on slow hardware. Imports no torch: Snakemake asks."""

from __future__ import annotations

from uic_core.config import Config
from uic_core.evaluations import EVALUATIONS, estimates
from uic_core.overview.costs import evaluation, preparation, training
from uic_core.overview.rates import slow

_MARGIN = 30  # minutes


def minutes(config: Config, rule: str, name: str) -> int:
    """Return the minutes of a rule's job.

    Args:
        rule: a rule of the workflow, or an evaluation.
        name: its run, data set or split.
    """
    if rule in EVALUATIONS:
        job = evaluation(config, name, rule, estimates)
    else:
        prepared = {job.key: job for job in preparation(config)}
        job = prepared.get((rule, name)) or training(config, name, estimates)
    return round(_MARGIN + slow(config).seconds(job) / 60)
