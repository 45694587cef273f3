"""The private RabbitMQ does what the tests ask of it."""

from __future__ import annotations

import pytest
from gevent import socket

from tests.brokers.rabbitmq import RabbitMQ, RabbitMQHandle

pytestmark = pytest.mark.full

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


def greets(broker: RabbitMQHandle, timeout: float = 30.0) -> bool:
    """Whether it answers the protocol header with a method frame of channel 0."""
    try:
        with socket.create_connection(("127.0.0.1", broker.port), timeout=timeout) as client:
            client.sendall(PROTOCOL_HEADER)
            return client.recv(3) == b"\x01\x00\x00"
    except OSError:
        return False


def alarms(broker: RabbitMQHandle) -> str:
    """Return the alarms that are set, as a list of Erlang."""
    return broker.evaluate("rabbit_alarm:get_local_alarms()")


def vhosts(broker: RabbitMQHandle) -> str:
    """Return the names of the virtual hosts, as a list of Erlang."""
    return broker.evaluate("[binary_to_list(Name) || Name <- rabbit_vhost:list_names()]")


def test_the_shared_one_answers(rabbitmq: RabbitMQHandle) -> None:
    assert greets(rabbitmq)
    assert '"/"' in vhosts(rabbitmq)


def test_the_app_stops_and_starts(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.stop_app()
    assert not greets(own_rabbitmq)
    own_rabbitmq.start_app()
    assert greets(own_rabbitmq)


@pytest.mark.parametrize("end", [RabbitMQ.stop, RabbitMQ.kill])
def test_its_data_stay(own_rabbitmq: RabbitMQ, unique: str, end: object) -> None:
    url = own_rabbitmq.add_vhost(unique)
    assert url == f"amqp://guest:guest@127.0.0.1:{own_rabbitmq.port}/{unique}"
    assert callable(end)
    end(own_rabbitmq)
    assert not own_rabbitmq.is_running
    assert not greets(own_rabbitmq)
    own_rabbitmq.start()
    assert greets(own_rabbitmq)
    assert unique in vhosts(own_rabbitmq)


def test_a_paused_one_is_silent(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.pause()
    assert not greets(own_rabbitmq, timeout=0.3)
    own_rabbitmq.resume()
    assert greets(own_rabbitmq)


def test_the_memory_alarm(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.set_memory_alarm(True)
    assert "resource_limit" in alarms(own_rabbitmq)
    own_rabbitmq.set_memory_alarm(False)
    assert alarms(own_rabbitmq) == "[]"


@pytest.mark.long
def test_the_disk_alarm(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.set_disk_alarm(True)
    assert "resource_limit" in alarms(own_rabbitmq)
    own_rabbitmq.mend()
    assert alarms(own_rabbitmq) == "[]"


def test_mending_undoes_everything(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.set_memory_alarm(True)
    own_rabbitmq.stop_app()
    own_rabbitmq.pause()
    own_rabbitmq.mend()
    assert greets(own_rabbitmq)
    assert alarms(own_rabbitmq) == "[]"


def test_virtual_hosts_come_and_go(rabbitmq: RabbitMQHandle, unique: str) -> None:
    rabbitmq.add_vhost(unique)
    assert unique in rabbitmq.ctl("list_vhosts").splitlines()
    rabbitmq.delete_vhost(unique)
    assert unique not in vhosts(rabbitmq)


def test_a_refused_call_says_why(rabbitmq: RabbitMQHandle) -> None:
    assert rabbitmq.evaluate("1 + 1") == "2"
    with pytest.raises(RuntimeError, match=r"no:body\(\): (?s:.*)undef"):
        rabbitmq.evaluate("no:body()")


def test_a_refused_command_says_why(own_rabbitmq: RabbitMQ) -> None:
    with pytest.raises(RuntimeError, match=r"delete_vhost nowhere: code (?s:.*)nowhere"):
        own_rabbitmq.ctl("delete_vhost", "nowhere")
