"""The applications in the files of a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenconn.running.search import applications_in

pytestmark = pytest.mark.pure

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


def test_an_empty_directory(tmp_path: Path) -> None:
    assert applications_in(str(tmp_path)) == []
