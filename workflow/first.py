"""Check what Snakemake takes up before the Snakefile, and would not name: config files, and the folder of its cache.

The profiles run this file, as a definition of YTE, Snakemake's template engine for profiles. FILES: the profile's own.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from uic_core.errors import stage
from uic_core.files import check_folder, read_yaml

parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--configfile", "--configfiles", nargs="+", type=Path, default=globals().get("FILES", []))
options, _ = parser.parse_known_args()
cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "snakemake")
with stage():
    for file in options.configfile:
        read_yaml(Path(file))
    check_folder(cache, "set XDG_CACHE_HOME to a folder that can be written")
