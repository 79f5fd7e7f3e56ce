"""`make bench`: one line a bar at the end, and no part that dies goes unseen."""

import pytest

from bench.__main__ import main

PARTS = {
    "passes": "print('PASS fast 3 >= 2')",
    "waits": "print('open later >= 2')",
    "misses": "import sys; print('MISS slow 1 >= 2'); sys.exit(1)",
    "killed": "import os, signal; print('PASS first 3 >= 2', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "raises": "raise ValueError",
}


@pytest.mark.parametrize(
    ("names", "status", "lines"),
    [
        (["passes", "waits"], 0, ["PASS fast 3 >= 2", "open later >= 2"]),
        (["misses", "passes"], 1, ["MISS slow 1 >= 2", "PASS fast 3 >= 2"]),
        (["killed", "passes"], 1, ["PASS first 3 >= 2", "MISS killed ended with status -9", "PASS fast 3 >= 2"]),
        (["raises"], 1, ["MISS raises ended with status 1"]),
    ],
)
def test_bars_are_said_again_at_the_end(tmp_path, monkeypatch, capfd, names, status, lines):
    for name, text in PARTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(names) == status
    said = capfd.readouterr().out.split("All bars:\n")[1].splitlines()
    assert len(said) == len(lines)
    assert all(line.startswith(start) for line, start in zip(said, lines, strict=True))
