"""Connections that name no broker, and URLs without a scheme."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenconn import App, Connection, configure, defaults
from greenconn.compat.carrot import connection as carrot
from greenconn.defaults import consuming_connection
from tests.integration.processes import run

HERE = "amqp://guest:**@localhost:5672//"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing configured, and nothing in the environment."""
    monkeypatch.delenv("GREENCONN_URL", raising=False)
    defaults.reset()
    yield
    defaults.reset()


def test_a_connection_without_arguments_is_to_the_configured_broker() -> None:
    options: dict[str, Any] = {"visibility_timeout": 5}
    configure("redis://one;redis://two", heartbeat=7, transport_options=options)
    connection = Connection()
    for each in (connection, connection.clone(), copy.copy(connection)):
        assert each.as_uri() == "redis://one:6379//"
        assert each.alt == ["redis://one", "redis://two"]
        assert (each.heartbeat, each.transport_options) == (7, options)
    assert pickle.loads(pickle.dumps(connection)).as_uri() == connection.as_uri()
    configure("redis://one", alternates=["redis://three"], failover_strategy="shuffle")
    assert sorted(Connection().alt) == ["redis://one", "redis://three"]
    assert Connection().failover_strategy is Connection.failover_strategies["shuffle"]


def test_arguments_win_over_the_configuration() -> None:
    configure("redis://one", heartbeat=7, connect_timeout=3)
    assert Connection(heartbeat=9).heartbeat == 9
    assert Connection(heartbeat=0).heartbeat == 0
    assert Connection(connect_timeout=None).connect_timeout is None
    assert Connection(connect_timeout=None).as_uri() == "redis://one:6379//"
    app = App(heartbeat=9).connection
    assert app is not None
    assert (app.as_uri(), app.heartbeat, app.connect_timeout) == ("redis://one:6379//", 9, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Connection("localhost"),
        lambda: Connection(None),
        lambda: Connection(port=5672),
        lambda: Connection(virtual_host="/"),
        lambda: Connection(userid="guest", password="guest"),
        lambda: Connection(transport="amqp"),
        lambda: Connection(alternates=["amqp://localhost"]),
        lambda: carrot.BrokerConnection()._make(),
    ],
)
def test_a_place_or_a_login_is_kombus(make: Callable[[], Connection]) -> None:
    configure("redis://one", heartbeat=7)
    assert make().as_uri() == HERE
    assert make().heartbeat == 0


def test_programs_of_kombu_have_kombus_default() -> None:
    outcome = run(
        "-c",
        "from greenconn.compat import install_as_kombu; install_as_kombu()\n"
        "import greenconn, kombu; greenconn.configure('redis://one')\n"
        "print(kombu.Connection().as_uri(), greenconn.App().connection)\n"
        "print(greenconn.defaults.default_connection('publish').as_uri())",
    )
    assert outcome.output.splitlines() == [f"{HERE} None", "redis://one:6379//"]


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("localhost", "amqp://localhost//"),
        ("localhost:5672", "amqp://localhost:5672//"),
        ("10.0.0.1/mail", "amqp://10.0.0.1/mail"),
        ("memory", "memory://"),
        ("redis", "redis://"),
        ("one;amqp://two", "amqp://one//"),
        ("", "amqp://localhost//"),
    ],
)
def test_a_url_without_a_scheme_is_refused(url: str, meant: str) -> None:
    for make in (App, configure, App().configure, consuming_connection):
        with pytest.raises(
            ValueError, match=f"(url|connection) must be a URL such as '{meant}', got"
        ):
            make(url)
    assert Connection().as_uri() == HERE  # the configuration is unchanged
    app = App(url or "localhost", transport="amqp")
    assert app.connection is not None
