"""The client of RabbitMQ's management API, on a RabbitMQ that has the plugin and on one that has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import gevent
import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import HttpError, ManagementError, OperationalError
from greenconn.green.deadline import Deadline
from greenconn.identity import program_name
from greenconn.worker import spawn_consumer
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.tls import CERTS
from tests.fix_tls import TlsFront

CAME = 20.0


@pytest.fixture
def connect(managed_rabbitmq: RabbitMQ) -> Iterator[Callable[..., Connection]]:
    """Makes connections to the managed broker, closed after the test."""
    made: list[Connection] = []

    def make(**options: Any) -> Connection:
        options.setdefault("manager_port", managed_rabbitmq.http_port)
        made.append(Connection(managed_rabbitmq.url, transport_options=options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def seen(look: Callable[[], Any], timeout: float = CAME) -> Any:
    """What *look* finds, as soon as it finds anything: the broker's statistics come late."""
    deadline = Deadline(timeout)
    while not (found := look()):
        assert not deadline.has_ended, "it was never seen"
        gevent.sleep(0.1)
    return found


def test_queues_exchanges_and_bindings(connect: Callable[..., Connection], unique: str) -> None:
    with connect() as connection:
        manager = connection.get_manager()
        queue = Queue(unique, Exchange(unique, "topic"), "a.#")
        queue(connection.default_channel).declare()
        assert manager.get_queue("/", unique)["durable"] is True
        assert unique in [each["name"] for each in manager.get_queues()]
        assert unique in [each["name"] for each in manager.get_queues("/")]
        assert manager.get_exchange("/", unique)["type"] == "topic"
        assert unique in [each["name"] for each in manager.get_exchanges("/")]
        bound = [b for b in connection.manager.get_bindings() if b["destination"] == unique]
        assert {("", unique), (unique, "a.#")} == {(b["source"], b["routing_key"]) for b in bound}
        assert manager.delete_binding("/", unique, unique, "a.#")
        assert [b["source"] for b in manager.get_queue_bindings("/", unique)] == [""]
        assert manager.delete_queue("/", unique)
        assert manager.delete_exchange("/", unique)
        with pytest.raises(ManagementError) as refused:
            manager.get_queue("/", unique)
        assert refused.value.code == 404


def test_messages(connect: Callable[..., Connection], unique: str) -> None:
    manager = connect().get_manager()
    name = f"{unique}/with a slash %"
    assert manager.create_queue("/", name, arguments={"x-max-length": 10})
    assert manager.create_exchange("/", unique, "direct", auto_delete=True)
    assert manager.create_binding("/", unique, name, "key/%2F")
    assert manager.publish("/", unique, "key/%2F", "one")
    assert not manager.publish("/", unique, "elsewhere", "two")
    assert manager.publish("/", "", name, "three", properties={"content_type": "text/plain"})
    assert seen(lambda: manager.get_queue_depth("/", name) == 2)
    assert manager.get_queue_depths("/", [name]) == {name: 2}
    (first,) = manager.get_messages("/", name, requeue=True)
    assert first["payload"] == "one"
    both = manager.get_messages("/", name, count=5, truncate=3)
    assert [each["payload"] for each in both] == ["one", "thr"]
    assert both[0]["redelivered"] is True
    manager.publish("/", "", name, "four")
    assert manager.purge_queues([("/", name)])
    assert manager.get_messages("/", name) == []
    assert manager.delete_binding("/", unique, name, "key/%2F")  # the exchange goes with it
    assert manager.delete_queue("/", name)


def test_virtual_hosts_and_users(connect: Callable[..., Connection], unique: str) -> None:
    manager = connect().get_manager()
    vhost = f"{unique}/a b"
    assert manager.is_alive()
    assert manager.create_vhost(vhost)
    assert vhost in manager.get_vhost_names()
    assert manager.get_vhost(vhost)["name"] == vhost
    assert manager.create_user(unique, "a secret", "management")
    assert manager.set_vhost_permissions(vhost, unique, ".*", "", "x")
    assert manager.get_vhost_permissions(vhost)[0]["write"] == "x"
    assert manager.get_user_permissions(unique)[0]["vhost"] == vhost
    theirs = connect().get_manager(userid=unique, password="a secret")
    assert theirs.get_whoami()["name"] == unique
    with pytest.raises(ManagementError) as refused:
        theirs.get_users()
    assert refused.value.code == 401
    assert manager.delete_permission(vhost, unique)
    assert manager.delete_user(unique)
    assert manager.delete_vhost(vhost)
    assert not manager.is_alive(vhost)
    assert manager.get_overview()["product_name"] == "RabbitMQ"
    assert manager.get_nodes()[0]["running"] is True


def test_the_page_shows_who_we_are(connect: Callable[..., Connection], unique: str) -> None:
    connection = connect(
        connection_name=unique, client_properties={"team": "mail", "connection_name": unique}
    )
    manager = connection.get_manager()
    consumer = spawn_consumer(
        unique, lambda body, message: None, connection=connection, tag_prefix="mailer-"
    )
    assert consumer.wait_ready(CAME)
    mine = seen(
        lambda: [c for c in manager.get_connections() if c.get("user_provided_name") == unique]
    )
    properties = mine[0]["client_properties"]
    assert (properties["product"], properties["team"]) == ("greenconn", "mail")
    assert properties["product_version"] == greenconn.__version__
    theirs = seen(lambda: [c for c in manager.get_consumers("/") if c["queue"]["name"] == unique])
    assert theirs[0]["consumer_tag"].startswith("mailer-")
    assert seen(lambda: [c for c in manager.get_channels() if c["connection_details"]["name"]])
    consumer.stop()
    manager.delete_queue("/", unique)


def test_a_connection_without_a_name_gets_one(connect: Callable[..., Connection]) -> None:
    connection = connect()
    connection.connect()
    manager = connection.get_manager()
    name = program_name()
    assert seen(
        lambda: [c for c in manager.get_connections() if c.get("user_provided_name") == name]
    )


def test_a_broker_without_the_plugin_is_reported(amqp_url: str) -> None:
    with Connection(amqp_url, transport_options={"manager_port": 1}) as connection:
        manager = connection.get_manager()
        assert not manager.is_alive()
        with pytest.raises(OperationalError, match="needs the plugin rabbitmq_management"):
            manager.get_overview()
    port = urlsplit(amqp_url).port
    assert port is not None
    with (
        Connection(amqp_url) as connection,
        pytest.raises(OperationalError, match=r"does not respond in HTTP.*rabbitmq_management"),
    ):
        connection.get_manager(port=port).get_queues()


def test_no_secret_is_shown(connect: Callable[..., Connection]) -> None:
    manager = connect().get_manager(userid="guest", password="not-the-password")
    with pytest.raises(HttpError) as refused:
        manager.get_overview()
    assert refused.value.code == 401
    for text in (str(refused.value), repr(refused.value), repr(manager)):
        assert "not-the-password" not in text


def test_the_login_is_asked_for_each_request(connect: Callable[..., Connection]) -> None:
    asked: list[str] = []

    def password() -> str:
        asked.append("asked")
        return "guest"

    connection = connect().clone(password=password)
    manager = connection.get_manager()
    assert manager.get_whoami()["name"] == "guest"
    assert manager.get_whoami()["name"] == "guest"
    assert len(asked) == 2
    connection.close()


def test_greenlets_may_ask_at_once(connect: Callable[..., Connection]) -> None:
    manager = connect().get_manager()
    answers = [gevent.spawn(manager.get_whoami) for _ in range(20)]
    gevent.joinall(answers, timeout=CAME, raise_error=True)
    assert all(each.get()["name"] == "guest" for each in answers)


def test_over_tls(managed_rabbitmq: RabbitMQ, tls_front: TlsFront) -> None:
    port = tls_front(("127.0.0.1", managed_rabbitmq.http_port))
    options = {"manager_port": port}
    trusting = {"ca_certs": str(CERTS / "ca.pem"), "server_hostname": "localhost"}
    manager = Connection(
        "amqps://guest:guest@127.0.0.1", ssl=trusting, transport_options=options
    ).get_manager()
    assert manager.get_whoami()["name"] == "guest"
    assert "/" in manager.get_vhost_names()
    strict = Connection("amqps://guest:guest@127.0.0.1", transport_options=options).get_manager()
    with pytest.raises(OperationalError, match="certificate"):
        strict.get_whoami()


def test_the_management_port_follows_tls() -> None:
    plain, tls = Connection("amqp://somewhere"), Connection("amqps://somewhere")
    assert repr(plain.get_manager()) == "<management API at http://somewhere:15672/api>"
    assert repr(tls.get_manager()) == "<management API at https://somewhere:15671/api>"
    mixed = Connection("amqps://somewhere?manager_ssl=0&manager_port=1234&manager_hostname=there")
    assert repr(mixed.get_manager()) == "<management API at http://there:1234/api>"
