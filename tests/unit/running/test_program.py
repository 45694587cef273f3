"""The application that a process runs, as it is named on the command line."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from greenconn import App
from greenconn.running.program import load_app


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
