"""Old names that users could import: each works, or is refused with an error that names the new one."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from greenconn.transport.base import StdChannel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "renamed.rst"
_ROW = re.compile(
    r"^``(greenconn\.[\w.]+)`` +``(greenconn\.[\w.]+)`` +(warns|is refused)$", re.MULTILINE
)
ROWS = _ROW.findall(PAGE.read_text())


def found(name: str) -> Any:
    """Return the module of a name, or what a module has under it."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(import_module(module), attribute)


def test_the_page_has_rows() -> None:
    assert {how for _, _, how in ROWS} == {"warns", "is refused"}


@pytest.mark.parametrize(("old", "new", "how"), ROWS, ids=[old for old, _, _ in ROWS])
def test_an_old_name_works_or_names_the_new_one(old: str, new: str, how: str) -> None:
    present = found(new)
    if how == "warns":
        with pytest.warns(DeprecationWarning, match=re.escape(new)):
            assert found(old) is present
        return
    module = new if hasattr(present, "__path__") else new.rpartition(".")[0]
    with pytest.raises(ImportError, match=re.escape(module)):
        found(old)


def test_the_old_name_of_flush_acks_works_with_a_warning() -> None:
    class Flushed(StdChannel):
        count = 0

        def flush_acks(self) -> None:
            self.count += 1

    channel = Flushed()
    with pytest.warns(DeprecationWarning, match=r"renamed to flush_acks\(\)"):
        channel.flush_answers()
    assert channel.count == 1


def test_another_name_is_none() -> None:
    from greenconn import abc

    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = abc.Nonsense  # type: ignore[attr-defined]
