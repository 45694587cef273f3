"""The text of an error, whatever its class makes of that."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import greenconn
from greenconn.entity import Queue
from greenconn.exceptions import LONGEST_TEXT, error_text


class Odd(str):
    """Text whose methods cannot be trusted."""

    def __getitem__(self, key: object) -> str:
        raise RuntimeError

    def encode(self, *args: object) -> bytes:
        raise RuntimeError

    __str__ = __format__ = __getitem__  # type: ignore[assignment]


class Shown(Exception):
    """An error whose text is its argument, or that raises it."""

    def __str__(self) -> str:
        (shown,) = self.args
        if isinstance(shown, Exception):
            raise shown
        return shown  # type: ignore[no-any-return]

    __repr__ = __str__


@pytest.mark.parametrize("show", [str, repr])
@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("as it is", "as it is"),
        ("", ""),
        (RuntimeError("no"), "{} of Shown raised RuntimeError"),
        (RecursionError(), "{} of Shown raised RecursionError"),
        (7, "{} of Shown raised TypeError"),
        (b"x", "{} of Shown raised TypeError"),
        ("\ud800 \N{EURO SIGN} \0", "\\ud800 \N{EURO SIGN} \0"),
        ("x" * 5000, "x" * LONGEST_TEXT),
        ("\ud800" * 5000, ("\\ud800" * LONGEST_TEXT)[:LONGEST_TEXT]),
        (Odd("odd"), "odd"),
    ],
    ids=map(str, range(10)),
)
def test_a_text_is_always_found(show: type[str], shown: object, text: str) -> None:
    found = error_text(Shown(shown), show)
    assert found == text.replace("{}", f"{show.__name__}()")
    assert found.__class__ is str
    assert len(found.encode()) < 4 * LONGEST_TEXT


def test_no_log_call_of_a_consumer_trusts_an_error() -> None:
    """Logging would lose the record."""
    root = Path(greenconn.__file__).parent / "worker"
    for path in root.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("logger."):
                names = {each.id for each in call.args if isinstance(each, ast.Name)}
                assert not names & {"exc", "error", "failure"}, f"{path}:{call.lineno}"


def test_a_queue_is_not_its_own_queue_of_dead_letters() -> None:
    with pytest.raises(ValueError, match="dead_letter must be another queue than 'q'"):
        Queue("q", dead_letter="q")
