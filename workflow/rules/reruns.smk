# What runs again: results whose records differ from the config (docs/changing.md). Snakemake compares the rest by times.
import functools
import sys
from pathlib import Path


@functools.cache
def difference(file):
    """Compare what a result records with the config (uic_core/overview/recorded.py); say what differs, once."""
    from uic_core.overview import recorded  # not in the jobs, which start faster without numpy

    found = recorded.difference(CONFIG, Path(file))
    if found:
        print(f"{file}: {found}; it is made again where it is needed", file=sys.stderr)
    return found


def by_content(output, source=()):
    """Return an input function for settings or data: what `output` records of them counts, not the times of `source`.

    Where it agrees with the config, `source` is ancient; where it differs, `output` is made again. Times count only
    where it cannot be said. Both are paths in the results folder, `source` may be an input function.
    """

    def find(wildcards):
        found = source(wildcards) if callable(source) else source and f"{RESULTS}/{source}"
        if not workflow.is_main_process:
            return found
        made = f"{RESULTS}/{output}".format(**dict(wildcards.items()))
        differs = difference(made)
        if differs:
            workflow.dag.forcefiles.add(made)
        return found if differs is None else ancient(found)

    return find


def voc07_root(wildcards, input):
    """Return VOC07's folder. By the argument `input` Snakemake knows that another folder alone reruns nothing."""
    return CONFIG.datasets.voc07.root
