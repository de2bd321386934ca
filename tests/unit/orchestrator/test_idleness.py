"""What `--until-idle` takes."""

from __future__ import annotations

import pytest

from orchestrator.idleness import receive_wait, seconds_of


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("5m", 300), ("90", 90), ("1h", 3600), ("0.5s", 0.5)])
def test_a_time_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "5 minutes", "1d", "31h61", "nan", "1e3", "721h"])
def test_anything_else_is_refused_and_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="say 60s, 5m, 1h or a number of seconds"):
        seconds_of(text)


def test_an_orchestrator_that_is_to_end_asks_more_often() -> None:
    assert [receive_wait(seconds) for seconds in (None, 1, 60, 3600)] == [60, 1, 15, 60]
