"""The source files of a program, and the one that changes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import gevent
import pytest

from greenconn.running.reload import SourceFiles, files_of_error
from greenconn.running.reload import __file__ as own_file

SOON = 30.0


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that is loaded."""
    path = tmp_path / "shop.py"
    path.write_text("")
    module = ModuleType("shop")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "shop", module)
    return path


def change(path: Path) -> None:
    path.touch()
    time = path.stat().st_mtime + 1
    os.utime(path, (time, time))


def test_the_file_of_a_module_changes(source: Path) -> None:
    files = SourceFiles()
    change(source)
    assert files.wait_change() == str(source)
    waiting = gevent.spawn(files.wait_change)
    gevent.sleep(0)
    assert not waiting.ready()
    change(source)
    assert waiting.get(timeout=SOON) == str(source)


def test_a_further_file_may_be_written_later(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    waiting = gevent.spawn(SourceFiles((str(path),)).wait_change)
    gevent.sleep(0)
    path.write_text("")
    gevent.sleep(0)
    assert not waiting.ready()
    waiting.kill()


def test_what_is_installed_is_not_looked_at() -> None:
    files = SourceFiles()._loaded()
    assert own_file in files
    assert not [each for each in files if "site-packages" in each or each == os.__file__]


def test_files_of_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("nonsense (")
    with pytest.raises(SyntaxError) as syntax:
        compile(path.read_text(), str(path), "exec")
    assert files_of_error(syntax.value) == (__file__, str(path))
    with pytest.raises(ValueError, match="other") as other:
        raise ValueError("other")
    assert files_of_error(other.value) == (__file__,)
