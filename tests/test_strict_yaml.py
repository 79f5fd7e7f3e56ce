"""YAML is read strictly, and what is wrong with it is named with its line."""

import pytest

from uic_core.errors import InputError
from uic_core.strict_yaml import read_yaml


def test_duplicate_keys_are_named_with_their_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\nb:\n  c: 1\n  c: 2\n")
    with pytest.raises(InputError, match=r"config\.yaml:4: is not valid YAML: key 'c' stands twice"):
        read_yaml(path)


def test_merge_keys_are_allowed_and_overridden(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 4, "y": 3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1\n", "must hold a mapping"),
        ("a: !!python/object:os.x {}", "not valid YAML"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\n\tb: 2\n",
            "2: is not valid YAML: found character '\\t' that cannot start any token; indent with spaces",
        ),
        ("a: 1\nb: 1\na: 2\n", "3: is not valid YAML: key 'a' stands twice; remove one of them"),
        ("a: &base 1\nb: *bas\n", "2: is not valid YAML: found undefined alias 'bas'; the anchors above it are base"),
        ("a: 1\nb: \u00e9\n".encode("latin-1"), "2: is not UTF-8 (byte 0xe9); save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), "1: is not UTF-8 (byte 0xff); save the file as UTF-8"),
        (
            "a: 1\nb: {c: 1\nd: 2\n",
            "3: is not valid YAML: expected ',' or '}', but got ':', while parsing a flow mapping",
        ),
        ("a: 1\nb: 'c\nd: 2\n", "4: is not valid YAML: found unexpected end of stream, while scanning a quoted scalar"),
        ("a: 1\nb: 2024-13-01\n", "2: is not valid YAML: month must be in 1..12; mend this line"),
        (
            "a: 1\nb: !!timestamp x\n",
            "2: is not valid YAML: 'NoneType' object has no attribute 'groupdict'; mend this line",
        ),
        ("a: 1\nb: !!bool x\n", "2: is not valid YAML: 'x'; mend this line"),
        ("a: 1\nb: !!int ''\n", "2: is not valid YAML: string index out of range; mend this line"),
        ("a: 1\n? [1, 2]\n: 3\n", "2: is not valid YAML: this key is no text; quote it"),
        ("a:\n  b: 8:00:00\n", "2: is not valid YAML: b: 8:00:00 means the number 28800; quote it if it is text"),
        ("a: 1\nb: \x00\n", "2: is not valid YAML: unacceptable character #x0000: special characters are not allowed"),
    ],
)
def test_fault_52_yaml_that_cannot_be_read_is_named_with_its_line(tmp_path, seen, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_yaml(path)
    seen(error.value)
    assert str(error.value).startswith(f"{path}:{message}")
    assert str(error.value).count(str(path)) == 1
    assert "\n" not in str(error.value)


def test_fault_52_yaml_that_is_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(InputError, match=r"config\.yaml: is nested too deeply"):
        read_yaml(path)


def test_fault_56_yaml_saved_on_windows_is_read(tmp_path, seen):
    """With a byte-order mark, and lines that end in CR LF."""
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: [x,\r\n  y]\r\n")
    assert read_yaml(path) == {"a": 1, "b": ["x", "y"]}
    seen(f"{path.name}: {read_yaml(path)}")
