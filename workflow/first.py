"""Check what Snakemake takes up before the Snakefile, and would not name: profiles, configs, the folder of its cache.

The profiles run this file, as a definition of YTE, Snakemake's template engine for profiles. FILES: the profile's own.
"""

import argparse
import os
import sys
from pathlib import Path

from snakemake.cli import get_profile_dir

sys.path.insert(0, str(Path(__file__).parents[1]))

from uic_core.errors import InputError, stage
from uic_core.files import check_folder
from uic_core.strict_yaml import read_yaml

parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--configfile", "--configfiles", nargs="+", type=Path, default=globals().get("FILES", []))
parser.add_argument("--profile", action="append")
parser.add_argument("--workflow-profile", default="default")
options, _ = parser.parse_known_args()
names = options.profile or [os.environ.get("SNAKEMAKE_PROFILE", "none")]
places = (options.workflow_profile, f"profiles/{options.workflow_profile}")
names += [place for place in places if os.path.exists(place)][:1]
profiles = [found[1] for found in map(get_profile_dir, names) if found]
cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "snakemake")
with stage():
    for file in map(Path, options.configfile):
        if file.suffix not in (".yaml", ".yml", ".json"):
            raise InputError(f"--configfile {file}: is neither .yaml nor .json; name results before --configfile")
    for file in (*profiles, *options.configfile):
        read_yaml(Path(file))
    check_folder(cache, "set XDG_CACHE_HOME to a folder that can be written")
