"""The smaller paths of kombu.utils."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from gevent import monkey

from greenconn import utils
from greenconn._version import version_info_t
from greenconn.utils import compat, debug, div, scheduling, text
from greenconn.utils.amq_manager import get_manager
from greenconn.utils.time import maybe_s_to_ms


def test_names_are_the_functions_not_the_modules() -> None:
    assert callable(utils.uuid)
    assert maybe_s_to_ms(1.5) == 1500
    assert maybe_s_to_ms(None) is None


class Nothing(Exception):
    """A queue is empty."""


def test_a_fair_cycle_goes_on_after_who_answered() -> None:
    queues = {"a": [1, 2], "b": [3]}

    def get(name: str, callback: Any) -> tuple[str, int]:
        if not queues[name]:
            raise Nothing
        return name, queues[name].pop(0)

    cycle = scheduling.FairCycle(get, list(queues), Nothing)
    assert [cycle.get(print) for _ in range(3)] == [("a", 1), ("b", 3), ("a", 2)]
    with pytest.raises(Nothing):
        cycle.get(print)
    with pytest.raises(Nothing):
        scheduling.FairCycle(get, [], Nothing).get(print)
    cycle.close()


def test_orders() -> None:
    robin = scheduling.cycle_by_name("round_robin")(["a", "b", "c"])
    assert robin.rotate("a") == "a"
    assert robin.consume(2) == ["b", "c"]
    assert robin.rotate("unknown") == "unknown"
    first = scheduling.cycle_by_name("priority")(["b", "a"])
    first.rotate("b")
    assert first.consume(5) == ["b", "a"]
    ordered = scheduling.cycle_by_name("sorted")()
    ordered.update(["b", "a", "c"])
    assert ordered.consume(2) == ["a", "b"]


def test_texts_that_are_near() -> None:
    assert text.fmatch_best("rabbitmq", ["rabitmq", "redis"]) == "rabitmq"
    assert text.fmatch_best("rabbitmq", ["sqs"]) is None
    assert text.escape_regex("a.b-c", white="-") == r"a\.b-c"


@pytest.mark.parametrize(
    ("version", "parts"),
    [
        ("3", (3, 0, 0, "", "")),
        ("3.10.8", (3, 10, 8, "", "")),
        ("3.1.4a1", (3, 1, 4, "a1", "")),
        ("3.1.4a1-40", (3, 1, 4, "a1", "40")),
        ("3.1.4.rc1", (3, 1, 4, "rc1", "")),
    ],
)
def test_versions(version: str, parts: tuple[Any, ...]) -> None:
    assert text.version_string_as_tuple(version) == version_info_t(*parts)


def test_a_state_is_dumped_even_if_it_cannot_be_pickled(tmp_path: Path) -> None:
    said = io.StringIO()
    path = Path(div.emergency_dump_state({"left": [1]}, stderr=said))
    assert str(path) in said.getvalue()
    assert pickle.loads(path.read_bytes()) == {"left": [1]}
    path.unlink()
    path = Path(div.emergency_dump_state([lambda: None], stderr=said))
    assert b"<lambda>" in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_a_dump_that_cannot_be_cut_goes_on_behind_what_was_written() -> None:
    class Tape(io.StringIO):
        def truncate(self, size: int | None = None) -> int:
            raise io.UnsupportedOperation("not this one")

        def close(self) -> None:
            pass

    def fail(state: object, file: Tape, **kwargs: Any) -> None:
        file.write("a long beginning;")
        raise TypeError("no")

    tape = Tape()
    path = Path(div.emergency_dump_state([1], open_file=lambda *_: tape, dump=fail))
    path.unlink()
    assert tape.getvalue() == "a long beginning;[1]"


def test_calls_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    wrapped = debug.Logwrapped([3, 1], "greenconn.test", "{0!r}.")
    with caplog.at_level(logging.DEBUG, "greenconn.test"):
        assert wrapped.index(1) == 1
    assert caplog.messages == ["[3, 1].index(1)"]
    assert "append" in dir(wrapped)
    assert repr(wrapped) == "[3, 1]"


def test_surroundings(tmp_path: Path) -> None:
    expected = "gevent" if monkey.is_module_patched("socket") else "default"
    assert compat.detect_environment() == expected
    with (tmp_path / "file").open("w") as file:
        assert compat.fileno(file) == compat.fileno(file.fileno())
    assert compat.maybe_fileno(file) is None
    assert compat.maybe_fileno("text") is None
    with pytest.raises(ValueError, match="None"):
        compat.fileno(None)
    order: list[str] = []

    class Manager:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> str:
            order.append(f"+{self.name}")
            return self.name

        def __exit__(self, *exc_info: object) -> None:
            order.append(f"-{self.name}")

    with compat.nested(Manager("a"), Manager("b")) as names:
        assert names == ["a", "b"]
    assert order == ["+a", "+b", "-b", "-a"]


def test_a_coroutine_has_been_started() -> None:
    @compat.coro
    def totals() -> Any:
        total = 0
        while True:
            total += yield total

    running = totals()
    assert running.send(2) == 2
    assert running.send(3) == 5


def test_a_manager_is_asked_of_the_connection() -> None:
    class Client:
        def get_manager(self, **kwargs: Any) -> Any:
            return kwargs

    assert get_manager(Client(), "host", 15672) == {
        "hostname": "host",
        "port": 15672,
        "userid": None,
        "password": None,
    }
