"""`make faults`: a row passes if all its tests do, and a row without tests is missed."""

from pathlib import Path

from bench import faults

TESTS = """
def test_fault_27_passes(seen):
    seen("resumed at\\n5 of 9")


def test_fault_28_one_of_two_passes(seen):
    seen("refused")


def test_fault_28_and_the_other_fails():
    assert "no error" == "refused"
"""


def test_a_line_a_row_says_what_was_seen(tmp_path: Path, capsys):
    folder = tmp_path / "tests"
    folder.mkdir()
    fixture = (Path(__file__).parents[1] / "conftest.py").read_text()
    (folder / "conftest.py").write_text(fixture)
    (folder / "test_some.py").write_text(TESTS)
    assert faults.main(["27", "28", "29", "--tests", str(folder)]) == 1
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first == "PASS 27 resumed at 5 of 9"
    assert second.startswith("MISS 28 test_fault_28_and_the_other_fails: failure: AssertionError")
    assert third == "MISS 29 no test ran"
    assert last == "1 of 3 rows pass"
