"""`make mutants` on a small library: what is killed, what survives, what is left out, and where it goes on."""

import random
from pathlib import Path

import pytest

from bench import mutants
from bench.mutation import mutants as mutants_of

MODULE = "uic_core/data/halves.py"
SOURCE = '''"""Halves."""


def half(x: float) -> float:
    return x / 2


def untested(x: float) -> float:
    return x / 4
'''
TEST = """from uic_core.data.halves import half


def test_half():
    assert [half(1), half(3)] == [0.5, 1.5]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A library of one module, with a test of one of its two functions."""
    for name, text in {MODULE: SOURCE, "tests/data/test_halves.py": TEST}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_a_test_sees_is_killed_and_the_rest_is_shown(tree, capsys):
    assert mutants.main(["--count", "9", "--modules", MODULE], tree) == 1  # two places a function are all there are
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["killed", f"{MODULE}:5"],
        ["killed", f"{MODULE}:5"],
        ["survived", f"{MODULE}:9"],
        ["survived", f"{MODULE}:9"],
    ]
    assert all(line.endswith("[tests/data/test_halves.py::test_half]") for line in lines[:2])
    assert lines.count("-    return x / 4") == 2
    assert lines[-1] == "MISS killed 2 of 4 (50%), bar 90%"
    assert (tree / MODULE).read_text() == SOURCE


def test_it_goes_on_and_tries_again_what_changed(tree, capsys, monkeypatch):
    tried: list[str] = []

    def counted(copy: Path, *rest: object) -> tuple[str, str]:
        tried.append((copy / MODULE).read_text())
        return run(copy, *rest)

    run = mutants.tried
    monkeypatch.setattr(mutants, "tried", counted)
    both = ["--count", "2", "--modules", MODULE]
    mutants.main(["--count", "1", *both[2:]], tree)
    mutants.main(both, tree)
    assert [text == SOURCE for text in tried] == [
        True,
        False,
        True,
        False,
    ]  # without a mutant first, for the time limit
    first = capsys.readouterr().out
    mutants.main(both, tree)
    assert len(tried) == 4
    assert capsys.readouterr().out.splitlines()[0] in first
    test = tree / "tests/data/test_halves.py"
    test.write_text(
        TEST.replace("import half", "import half, untested")
        + "\n\ndef test_untested():\n    assert untested(3) == 0.75\n"
    )
    assert mutants.main(both, tree) == 0
    assert capsys.readouterr().out.endswith("PASS killed 2 of 2 (100%), bar 90%\n")


def test_tests_that_fail_anyway_kill_nothing(tree):
    (tree / "tests/data/test_halves.py").write_text(TEST.replace("1.5", "2.5"))
    with pytest.raises(RuntimeError, match=r"killed without a mutant, by tests/data/test_halves\.py::test_half"):
        mutants.main(["--modules", MODULE], tree)


def test_a_test_without_end_is_killed_by_time(tree):
    (tree / "tests/data/test_halves.py").write_text("def test_half():\n    while True: pass\n")
    assert mutants.tried(tree, ["tests/data/test_halves.py"], 5) == ("timeout", "")


def test_what_decides_no_number_is_left_out():
    source = '''"""1 + 1."""
if TYPE_CHECKING:
    KINDS = 1


def area(side: int | str = 4, *, unit: float | None) -> int | None:
    assert side > 1
    print("area", 1 + 2)
    parser.add_argument("--side", default=3)
    if side > 5:
        raise ValueError(f"{side + 1} is {2:.1f}")
    limit: int | None = 7
    return area(inplace=True, **unit, side=side * 2)


if __name__ == "__main__":
    area(3)
'''
    found = list(mutants_of("area.py", source, random.Random(0)))
    assert sorted({mutant.line for mutant in found}) == [6, 10, 12, 13]
    assert len(found) == 7  # 4; >, its sides, 5; 7; *, 2
    assert all(mutant.text != source for mutant in found)


def test_the_sample_is_the_seeds_and_takes_the_modules_in_turn():
    modules = ["uic_core/data/boxes.py", "uic_core/models/sobel.py", "uic_core/models/probe_pool.py"]
    found = mutants.sample(mutants.ROOT, modules, 6, 3)
    assert [mutant.module for mutant in found] == [name for name in sorted(modules) for _ in range(2)]
    assert found == mutants.sample(mutants.ROOT, modules, 6, 3)
    assert found != mutants.sample(mutants.ROOT, modules, 6, 4)
    # what is drawn of a module does not depend on the others
    assert [mutant for mutant in found if mutant.module == modules[0]] == mutants.sample(
        mutants.ROOT, modules[:1], 2, 3
    )


def test_every_module_is_there_and_has_a_test():
    for module in mutants.MODULES:
        assert (mutants.ROOT / module).exists()
        assert mutants.mirrors(mutants.ROOT, module)
