"""Tables and small graphs of plain text."""

from __future__ import annotations

import pytest

from greenconn.cli.terminal import (
    ASCII_BARS,
    BARS,
    Column,
    number,
    rate,
    span,
    sparkline,
    table_lines,
)

pytestmark = pytest.mark.pure

COLUMNS = [
    Column("QUEUE", is_right=False),
    Column("READY"),
    Column("KIND", is_right=False, is_optional=True),
]


def test_columns_are_as_wide_as_need_be() -> None:
    assert table_lines(COLUMNS, [["mail", "12,345", "quorum"], ["q", "0", "-"]]) == [
        "QUEUE   READY  KIND",
        "mail   12,345  quorum",
        "q           0  -",
    ]


def test_a_column_of_which_nothing_is_known_is_left_out() -> None:
    assert table_lines(COLUMNS, [["mail", "1", "-"]]) == ["QUEUE  READY", "mail       1"]
    assert table_lines(COLUMNS, [["-", "-", "-"]]) == ["QUEUE  READY", "-          -"]


def test_long_names_are_shortened_to_the_width() -> None:
    lines = table_lines(COLUMNS, [["q" * 100, "1", "classic"]], 40)
    assert [len(each) for each in lines] == [37, 40]
    assert "qqq...      1  classic" in lines[1]
    assert max(map(len, table_lines(COLUMNS, [["q" * 100, "1", "classic"]], 10))) == 24


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.0 s"), (12.34, "12 s"), (600.0, "10 min"), (36000.0, "10.0 h")],
)
def test_spans(value: float | None, text: str) -> None:
    assert span(value) == text


def test_numbers_and_rates() -> None:
    assert (number(None), number(1234)) == ("-", "1,234")
    assert [rate(each) for each in (None, 0.25, -12.34, 1234.5)] == ["-", "0.2", "-12.3", "1,234"]


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == BARS[0] * 2
    assert sparkline([0, 50, 100]) == f"{BARS[0]}{BARS[3]}{BARS[-1]}"
    assert sparkline([7], ASCII_BARS) == "#"
