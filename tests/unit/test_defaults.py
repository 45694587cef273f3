"""The default connections: which broker they lead to, whose they are, when they are closed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from greenconn import defaults
from greenconn.connection import Connection
from greenconn.defaults import (
    configure,
    consuming_connection,
    default_connection,
    publishing_connection,
)
from greenconn.transport import memory


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, unique: str) -> Iterator[None]:
    """Nothing configured, and nothing in the environment."""
    monkeypatch.delenv("GREENCONN_URL", raising=False)
    defaults.reset()
    yield
    defaults.reset()
    memory.reset(unique)


@pytest.fixture
def url(unique: str) -> str:
    """The URL of a memory broker."""
    return f"memory:///{unique}"


def test_the_environment_is_read_when_first_needed(
    monkeypatch: pytest.MonkeyPatch, url: str, unique: str
) -> None:
    monkeypatch.setenv("GREENCONN_URL", url)
    assert default_connection("consume").virtual_host == unique
    monkeypatch.setenv("GREENCONN_URL", "memory:///other")
    assert default_connection("publish").virtual_host == unique


def test_configure_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, unique: str
) -> None:
    monkeypatch.setenv("GREENCONN_URL", "memory:///other")
    configure(url)
    assert default_connection("consume").virtual_host == unique


def test_configure_without_url_takes_the_environment_and_its_own_options(
    monkeypatch: pytest.MonkeyPatch, url: str, unique: str
) -> None:
    monkeypatch.setenv("GREENCONN_URL", url)
    configure(connect_timeout=1.5)
    connection = default_connection("consume")
    assert (connection.virtual_host, connection.connect_timeout) == (unique, 1.5)


def test_a_wrong_url_changes_nothing(url: str, unique: str) -> None:
    configure(url)
    with pytest.raises(KeyError):
        configure("nonsense://broker")
    assert default_connection("consume").virtual_host == unique


def test_amqp_has_two_sockets() -> None:
    consuming, publishing = default_connection("consume"), default_connection("publish")
    assert consuming is not publishing
    assert consuming.info() == publishing.info()
    assert default_connection("consume") is consuming
    assert default_connection("publish") is publishing


def test_other_transports_share_one(url: str) -> None:
    configure(url)
    assert default_connection("publish") is default_connection("consume")


def test_configure_again_closes_the_former(url: str) -> None:
    configure(url)
    former = default_connection("consume")
    former.connect()
    configure("memory:///another")
    assert former.session.is_closed
    assert default_connection("consume") is not former
    assert not default_connection("consume").connected


def test_each_thread_has_its_own(url: str, patched: bool) -> None:
    configure(url)
    here = default_connection("consume")
    there: list[Connection] = []

    def of_thread() -> None:
        there.append(default_connection("consume"))
        there[0].connect()
        there[0].close()

    thread = threading.Thread(target=of_thread)
    thread.start()
    thread.join()
    # In a patched process that thread is a greenlet of this hub.
    assert (there[0] is here) is patched
    assert default_connection("consume") is here


def test_configure_reaches_other_threads_at_their_next_use(url: str, unique: str) -> None:
    hosts: list[str] = []
    sessions: list[Any] = []
    was_made, was_configured = threading.Event(), threading.Event()

    def of_thread() -> None:
        first = default_connection("consume")
        first.connect()
        sessions.append(first.session)
        hosts.append(first.virtual_host)
        was_made.set()
        was_configured.wait(30)
        hosts.append(default_connection("consume").virtual_host)
        sessions.append(default_connection("consume").session)
        defaults._kept.pop()

    configure(url)
    thread = threading.Thread(target=of_thread)
    thread.start()
    was_made.wait(30)
    configure(f"{url}-2")
    was_configured.set()
    thread.join()
    assert hosts == [unique, f"{unique}-2"]
    assert sessions[0].is_closed
    assert not sessions[1].is_closed


def test_a_url_has_one_pair(url: str) -> None:
    assert consuming_connection(url) is consuming_connection(url)
    assert consuming_connection(url) is publishing_connection(url)
    assert consuming_connection(url) is not default_connection("consume")
    assert publishing_connection("amqp://x") is not consuming_connection("amqp://x")


def test_what_is_no_connection_is_refused() -> None:
    with pytest.raises(TypeError, match="a Connection, a URL or None"):
        consuming_connection(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        publishing_connection(b"amqp://")  # type: ignore[arg-type]


def test_one_clone_publishes_for_a_given_connection() -> None:
    with Connection("amqp://somewhere") as connection:
        clone = publishing_connection(connection)
        assert clone is not connection
        assert clone.info() == connection.info()
        assert publishing_connection(connection) is clone
        assert not clone.session.is_closed
    assert clone.session.is_closed


def test_elsewhere_a_given_connection_publishes_itself(url: str) -> None:
    with Connection(url) as connection:
        assert publishing_connection(connection) is connection


def test_reset_closes_all(url: str) -> None:
    configure(url)
    connections = [
        default_connection("consume"),
        default_connection("publish"),
        consuming_connection(f"{url}-2"),
    ]
    for connection in connections:
        connection.connect()
    defaults.reset()
    assert all(connection.session.is_closed for connection in connections)
    memory.reset(f"{url}-2")


def test_the_end_of_the_interpreter_waits_two_seconds_at_most() -> None:
    text = run_python(
        """
        import time, gevent
        import greenconn.defaults as defaults
        defaults.configure("memory://")
        connection = defaults.default_connection("publish")
        other = defaults.consuming_connection("memory:///other")
        for each in (connection, other):
            each.connect()
        connection.session.on_closed.append(lambda: gevent.sleep(30))
        other.session.on_closed.append(lambda: print("closed"))
        """,
        timeout=15,
    )
    assert text == "closed\n"


def run_python(program: str, timeout: float = 30) -> str:
    """What *program* prints in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "GREENCONN_URL"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
