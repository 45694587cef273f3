"""The application that a process runs, as it is named on the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import gevent
import pytest

from greenconn import App
from greenconn.service.program import SourceFiles, applications_in, files_of_error, load_app


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("greenconn_shop")
    monkeypatch.setitem(sys.modules, "greenconn_shop", module)
    return module


def test_an_application_by_its_name(module: ModuleType) -> None:
    module.app, module.other = App(), App()  # type: ignore[attr-defined]
    assert load_app("greenconn_shop") is module.app
    assert load_app("greenconn_shop:other") is module.other
    module.deep = module  # type: ignore[attr-defined]
    assert load_app("greenconn_shop:deep.other") is module.other


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("greenconn_shop", "module 'greenconn_shop' has no application 'app'"),
        ("greenconn_shop:number", "greenconn_shop:number must be a greenconn.App, got 3"),
        (
            "greenconn_nowhere",
            "module 'greenconn_nowhere' of application 'greenconn_nowhere' was not",
        ),
        (":app", "application must be given as module:name, got ':app'"),
    ],
)
def test_what_is_no_application(module: ModuleType, target: str, text: str) -> None:
    module.number = 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=text):
        load_app(target)


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


def test_files_of_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("nonsense (")
    with pytest.raises(SyntaxError) as syntax:
        compile(path.read_text(), str(path), "exec")
    assert files_of_error(syntax.value) == (__file__, str(path))
    with pytest.raises(ValueError, match="other") as other:
        raise ValueError("other")
    assert files_of_error(other.value) == (__file__,)


FILES = {
    "mail.py": "from greenconn import App, publish\napp: App = App()\n",
    "named.py": "import greenconn as green\nfirst = second = green.App('memory://')\nother = 5\n",
    "renamed.py": "from greenconn import App as Application\nworker = Application()\n",
    "shop/__init__.py": "import greenconn\napp = greenconn.App()\n",
    "shop/tasks.py": "from greenconn import App\napp = App()\n",
    "shop/deep/est/tasks.py": "from greenconn import App\napp = App()\n",
    # What makes none.
    "raises.py": "import greenconn\nraise SystemExit('it was imported')\n",
    "wrong.py": "from greenconn import App\napp = App(\n",
    "bytes.py": "# coding: nonsense\nfrom greenconn import App\napp = App()\n",
    "other.py": "from flask import App\napp = App()\n# greenconn\n",
    "in_function.py": "from greenconn import App\ndef make():\n    app = App()\n    return app\n",
    "no-module.py": "from greenconn import App\napp = App()\n",
    "text.txt": "from greenconn import App\napp = App()\n",
    ".hidden/tasks.py": "from greenconn import App\napp = App()\n",
    "tests/app.py": "from greenconn import App\napp = App()\n",
    "venv/pyvenv.cfg": "",
    "venv/tasks.py": "from greenconn import App\napp = App()\n",
    "shop/deep/est/of/all/tasks.py": "from greenconn import App\napp = App()\n",
}


def test_applications(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert applications_in(str(tmp_path)) == [
        "mail:app",
        "named:first",
        "named:second",
        "renamed:worker",
        "shop:app",
        "shop.tasks:app",
        "shop.deep.est.tasks:app",
    ]
