"""Every part, each in a process of its own; exit status 1 where a bar is missed."""

import subprocess
import sys

PARTS = ("boundary", "loader", "methods", "precision", "gpu", "frozen", "proposals")

if __name__ == "__main__":
    sys.exit(max(subprocess.run([sys.executable, "-m", f"bench.{part}"]).returncode for part in PARTS))
