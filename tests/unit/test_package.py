"""The names of the package."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import greenconn


def run(program: str) -> str:
    """What *program* prints in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("name", greenconn.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(greenconn, name) is not None
    assert name in dir(greenconn)


def test_names_are_those_of_their_modules() -> None:
    for name, module in greenconn._HOMES.items():
        assert getattr(greenconn, name) is getattr(import_module(f"greenconn.{module}"), name)
    at_once = {"rpc", "__version__", "VERSION", "version_info", "version_info_t"}
    assert set(greenconn._HOMES) | at_once == set(greenconn.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'Conection'"):
        getattr(greenconn, "Conection")  # noqa: B009 - a type checker would see it


def test_importing_loads_nothing() -> None:
    loaded = run(
        "import sys, greenconn; print(*(n for n in ('gevent', 'amqp', 'ssl') if n in sys.modules))"
    )
    assert loaded.strip() == ""


def test_importing_all_names_starts_nothing_and_patches_nothing() -> None:
    said = run(
        "import threading\n"
        "from greenconn import *\n"
        "from gevent import monkey, Greenlet\n"
        "import gc\n"
        "print(threading.active_count(), monkey.saved, "
        "[o for o in gc.get_objects() if isinstance(o, Greenlet)])\n"
    )
    assert said.strip() == "1 {} []"
