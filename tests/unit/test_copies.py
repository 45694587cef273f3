"""Errors and values that are pickled, copied and sent to other processes."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import greenconn
from greenconn.exceptions import PublishTimeout, Unroutable
from greenconn.options import Retry
from greenconn.service.health import ConnectionHealth, ConsumerHealth, Health, Reason
from tests.integration.processes import run

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda it: pickle.loads(pickle.dumps(it)),
    "pickle-2": lambda it: pickle.loads(pickle.dumps(it, 2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
#: Arguments with which errors are made, the first that a class takes.
ARGUMENTS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    (("text",), {"maybe_delivered": True}),
    (("text",), {"code": 313, "exchange": "e", "routing_key": "r"}),
    (("text",), {"failed": {1: ValueError("one")}, "taken": 2}),
    (("text",), {"remote_type": "a.b", "remote_traceback": "line 1"}),
    (("text",), {"has_reason": False}),
    (("text",), {}),
    ((404, "text"), {}),
    ((200, "code", "text"), {}),
    ((30,), {}),
    ((), {}),
)
#: Modules that need settings of a program, or change kombu in this process.
NOT_IMPORTED = (
    "greenconn.contrib.celery",
    "greenconn.contrib.outbox.django.models",
    "greenconn.contrib.django",
    "greenconn.__main__",
)


@cache
def classes() -> tuple[type, ...]:
    found: dict[type, None] = {}
    for info in pkgutil.walk_packages(greenconn.__path__, "greenconn."):
        if info.name.startswith(NOT_IMPORTED):
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:
            continue  # of an extra that is not installed
        for value in list(vars(module).values()):
            if issubclass(type(value), type) and str(value.__module__).startswith("greenconn"):
                found[value] = None
    return tuple(found)


def errors() -> Iterator[BaseException]:
    for kind in classes():
        if issubclass(kind, BaseException):
            yield made(kind)


def made(kind: type[BaseException]) -> BaseException:
    for args, kwargs in ARGUMENTS:
        try:
            return kind(*args, **kwargs)
        except (TypeError, ValueError):
            continue
    raise AssertionError(f"no arguments for {kind}: add some to ARGUMENTS")


def fields(error: BaseException) -> dict[str, Any]:
    """Return its attributes, but for the timer of a timeout."""
    return {name: value for name, value in vars(error).items() if name != "timer"}


@pytest.mark.pure
@pytest.mark.parametrize("way", WAYS)
def test_each_error_can_be_copied(way: str) -> None:
    count = 0
    for error in errors():
        other = WAYS[way](error)
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert repr(fields(other)) == repr(fields(error)), error
        count += 1
    assert count > 70


@pytest.mark.pure
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value",
    [
        *(Retry(tries=3), Retry(tries=2, delay=5, hold="broker")),
        greenconn.Exchange("e", "topic", arguments={"a": 1}),
        greenconn.Queue("q", greenconn.Exchange("e"), routing_key="r", dead_letter=True),
        Reason(
            what="consumer",
            name="q",
            state="failed",
            since="now",
            why=None,
            remedy="restart",
            needs_restart=True,
        ),
        Health(
            connections=(
                ConnectionHealth(
                    url="amqp://h", state="open", blocked=None, lost=None, lives=1, since="now"
                ),
            ),
            consumers=(
                ConsumerHealth(
                    name="q",
                    state="running",
                    error=None,
                    since="now",
                    stats={"received": 1},
                    stall=None,
                ),
            ),
        ),
        greenconn.VERSION,
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_value_can_be_copied(way: str, value: Any) -> None:
    other = WAYS[way](value)
    assert type(other) is type(value)
    assert other == value


@pytest.mark.pure
def test_the_attributes_of_an_error_are_kept() -> None:
    timeout = pickle.loads(pickle.dumps(PublishTimeout("late", maybe_delivered=False)))
    assert (str(timeout), timeout.maybe_delivered) == ("late", False)
    lost = copy.copy(Unroutable("no queue", code=313, exchange="e", routing_key="r"))
    assert (lost.reply_code, lost.exchange, lost.routing_key) == (313, "e", "r")


@pytest.mark.pure
def test_an_error_of_a_program_s_own_class_can_be_copied() -> None:
    class Refused(greenconn.exceptions.OperationalError):
        def __init__(self, *, order: int) -> None:
            super().__init__(f"order {order} was refused")
            self.order = order

    other = copy.deepcopy(Refused(order=7))
    assert (str(other), other.order) == ("order 7 was refused", 7)


WORKER = """
from concurrent.futures import ProcessPoolExecutor
from greenconn.broker.port import LeaseExpired
from greenconn.exceptions import PublishTimeout, Unroutable

def fail(number):
    raise (PublishTimeout("late", maybe_delivered=True), Unroutable("away"), LeaseExpired())[number]

if __name__ == "__main__":
    with ProcessPoolExecutor(1) as pool:
        for number in range(3):
            print(type(pool.submit(fail, number).exception(timeout=60)).__name__)
"""


@pytest.mark.programs
def test_an_error_of_a_worker_process_reaches_its_parent(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    done = run(str(program))
    assert done.output.split() == ["PublishTimeout", "Unroutable", "LeaseExpired"], done.errors
