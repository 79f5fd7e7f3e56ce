"""The error exit."""

import pytest

from uic_core.errors import InputError, stage


def test_a_stage_turns_a_users_mistake_into_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, stage():
        raise InputError("data/x: is not there; look again")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: data/x: is not there; look again\n"
