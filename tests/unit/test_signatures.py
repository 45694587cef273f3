"""``help()`` shows every option with its type and its default."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import greenconn
from greenconn import App, Connection, Exchange, Limit, Queue, Rate, Retry

FUNCTIONS: list[Callable[..., Any]] = [
    *(greenconn.publish, greenconn.publish_many, greenconn.spawn_consumer, greenconn.configure),
    *(greenconn.rpc.call, greenconn.rpc.spawn_server),
    *(App, App.configure, App.consumer, App.rpc, App.publish, App.publish_many, App.call),
    *(Connection, Queue, Exchange, Retry, Limit, Rate),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.__qualname__)
def test_every_option_has_a_name_a_type_and_a_default(function: Callable[..., Any]) -> None:
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD
        if parameter.name != "self":
            assert parameter.annotation is not parameter.empty, parameter
            assert "NotRequired" not in str(parameter.annotation)
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.default is not parameter.empty, parameter


def defaults(function: Callable[..., Any], *without: str) -> dict[str, Any]:
    """Return the options that are shown with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {
        each.name: each.default
        for each in parameters
        if each.kind is each.KEYWORD_ONLY and each.name not in without
    }


def test_defaults_of_entities_are_those_of_their_classes() -> None:
    assert Queue("q", **defaults(Queue)) == Queue("q")
    assert Exchange("x", **defaults(Exchange)) == Exchange("x")
    assert Retry(**defaults(Retry)) == Retry()


def test_a_publish_and_a_consumer_take_what_is_shown() -> None:
    app = App("memory://")
    got: list[int] = []

    @app.consumer("q", **defaults(App.consumer))
    def handle(body: Any, message: Any) -> None:
        got.append(body)

    with app.testing() as test:
        app.publish("q", 1, **defaults(App.publish))
        app.publish_many("q", [2], **defaults(App.publish_many))
        test.run_until_idle()
    assert got == [1, 2]


def test_a_signature_can_be_copied() -> None:
    shown = inspect.signature(greenconn.publish)
    assert str(copy.deepcopy(shown)) == str(pickle.loads(pickle.dumps(shown))) == str(shown)
    assert list(shown.replace(parameters=[]).parameters) == []
    assert shown == inspect.signature(greenconn.publish)
