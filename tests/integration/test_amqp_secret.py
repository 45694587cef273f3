"""The login's secret: changed while the connection is open, renewed before it ends."""

from __future__ import annotations

import re

import gevent
import pytest
from amqp import spec
from amqp.serialization import loads
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.credentials import Token
from greenconn.exceptions import NotAllowed, RecoverableConnectionError
from greenconn.green import retry
from greenconn.green.deadline import Deadline
from greenconn.worker import spawn_consumer
from tests.brokers.rabbitmq import RabbitMQHandle
from tests.fix_amqp import AmqpPeer, BrokerEnd, Links
from tests.fix_interrupts import interruptions
from tests.fix_wires import until

CAME = 20.0
UPDATE, UPDATE_OK = (10, 70), (10, 71)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens may end soon."""
    monkeypatch.setattr(retry, "LEAST_PAUSE", 0.05)


@pytest.fixture
def taking(amqp_peer: AmqpPeer) -> AmqpPeer:
    """A server that takes new secrets."""
    amqp_peer.prepare = lambda end: end.answers.update({UPDATE: (UPDATE_OK,)})
    return amqp_peer


def said(end: BrokerEnd) -> tuple[str, str]:
    """The next secret that the server was told, and the reason."""
    secret, reason = loads("Ss", end.expect(UPDATE)[2], 0)[0]
    return secret if isinstance(secret, str) else secret.decode(), reason


def test_rabbitmq_takes_a_new_secret(rabbitmq: RabbitMQHandle, amqp_url: str, unique: str) -> None:
    with Connection(amqp_url, transport_options={"connection_name": unique}) as connection:
        got = Event()
        consumer = spawn_consumer(unique, lambda body, message: got.set(), connection=connection)
        assert consumer.wait_ready(CAME)
        connection.update_secret("guest", f"because of {unique}")
        until(lambda: f"because of {unique}" in rabbitmq.log.read_text())
        # All goes on as it was.
        connection.Producer().publish("hello", routing_key=unique)
        assert got.wait(CAME)
        assert connection.session.generation == 1
        consumer.stop()
        connection.default_channel.queue_delete(unique)


def test_rabbitmq_renews_tokens(
    quick: None, rabbitmq: RabbitMQHandle, amqp_url: str, unique: str
) -> None:
    asked: list[int] = []

    def password() -> str:
        asked.append(len(asked))
        return Token("guest", expires_in=0.3)

    name = {"connection_name": unique}
    with Connection(amqp_url, password=None, transport_options=name) as plain:
        connection = plain.clone(password=password)
        connection.connect()
        until(lambda: len(asked) >= 4)
        assert connection.session.generation == 1
        assert connection.connected
        connection.close()
    # RabbitMQ 4.3 has the name without the parenthesis of older ones.
    line = re.compile(rf"{unique}\)?: user 'guest' updated secret")
    until(lambda: len(line.findall(rabbitmq.log.read_text())) >= 2)


def test_callers_are_answered_in_order(amqp_peer: AmqpPeer) -> None:
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        callers = [gevent.spawn(connection.update_secret, f"secret-{n}", "why") for n in range(3)]
        end = amqp_peer.end
        assert [said(end) for _ in range(3)] == [(f"secret-{n}", "why") for n in range(3)]
        callers[1].kill()
        end.method(0, UPDATE_OK)
        until(callers[0].ready)
        end.method(0, UPDATE_OK)  # the killed one's
        gevent.sleep(0.05)
        assert not callers[2].ready()
        end.method(0, UPDATE_OK)
        gevent.joinall(callers, timeout=CAME, raise_error=True)
        assert connection.password == "secret-2"


def test_a_refused_secret_costs_the_connection(amqp_peer: AmqpPeer) -> None:
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        caller = gevent.spawn(connection.update_secret, "bad-word", "why")
        end = amqp_peer.end
        end.expect(UPDATE)
        end.method(
            0, spec.Connection.Close, "BsBB", 530, "NOT_ALLOWED - New secret was refused", *UPDATE
        )
        with pytest.raises(NotAllowed, match="New secret was refused") as refused:
            caller.get(timeout=CAME)
        assert "bad-word" not in str(refused.value)
        # What the broker refused is not used to connect again.
        assert connection.password == "secret-word"


@pytest.mark.full
def test_a_silent_broker_is_waited_for_no_longer_than_asked(amqp_peer: AmqpPeer) -> None:
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        with pytest.raises(TimeoutError, match="did not accept the new secret"):
            connection.update_secret("new", timeout=0.1)
        # The late answer is that caller's, not the next one's.
        caller = gevent.spawn(connection.update_secret, "newer")
        end = amqp_peer.end
        end.expect(UPDATE)
        end.expect(UPDATE)
        end.method(0, UPDATE_OK)
        gevent.sleep(0.05)
        assert not caller.ready()
        end.method(0, UPDATE_OK)
        caller.get(timeout=CAME)


def test_a_lost_connection_wakes_who_waits(amqp_peer: AmqpPeer) -> None:
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        caller = gevent.spawn(connection.update_secret, "new")
        amqp_peer.end.expect(UPDATE)
        amqp_peer.peer.drop()
        with pytest.raises(RecoverableConnectionError):
            caller.get(timeout=CAME)


@pytest.mark.full
def test_the_next_connection_uses_the_new_secret(taking: AmqpPeer) -> None:
    with Connection(taking.url) as connection:
        connection.update_secret("first-word")  # not open: kept for later
        assert not taking.ends
        connection.connect()
        assert b"first-word" in taking.end.expect(spec.Connection.StartOk)[2]
        connection.update_secret("second-word", "rotation")
        assert said(taking.end) == ("second-word", "rotation")
        taking.peer.drop()
        until(lambda: not connection.connected)
        connection.connect()
        assert b"second-word" in taking.end.expect(spec.Connection.StartOk)[2]
        assert b"second-word" in connection.clone().password.encode()


class Provider:
    """Gives tokens that end soon, and fails when the test says so."""

    def __init__(self, *expires_in: float | None) -> None:
        self.lives = list(expires_in)
        self.given = 0
        self.failures = 0

    def get_credentials(self) -> tuple[str, str]:
        if self.failures:
            self.failures -= 1
            raise OSError("the issuer is away")
        self.given += 1
        life = self.lives.pop(0) if len(self.lives) > 1 else self.lives[0]
        return "user", Token(f"token-{self.given}", life)


def test_tokens_are_renewed_before_they_end(quick: None, taking: AmqpPeer) -> None:
    provider = Provider(0.3)
    with Connection(taking.url, credential_provider=provider) as connection:
        connection.connect()
        assert b"token-1" in taking.end.expect(spec.Connection.StartOk)[2]
        assert said(taking.end)[0] == "token-2"
        assert said(taking.end)[0] == "token-3"
        assert connection.session.generation == 1
    given = provider.given
    gevent.sleep(0.5)
    assert provider.given == given  # the timer ends with the connection


def test_one_that_does_not_end_is_never_renewed(quick: None, taking: AmqpPeer) -> None:
    provider = Provider(0.2, None)
    with Connection(taking.url, credential_provider=provider) as connection:
        connection.connect()
        assert said(taking.end)[0] == "token-2"
        gevent.sleep(0.5)
        assert provider.given == 2


@pytest.mark.full
def test_an_issuer_that_is_away_is_asked_again(
    quick: None, taking: AmqpPeer, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(0.3)
    with Connection(taking.url, credential_provider=provider) as connection:
        connection.connect()
        provider.failures = 3
        assert said(taking.end)[0] == "token-2"
        assert caplog.text.count("the credentials could not be renewed") == 3
        assert "token-" not in caplog.text
        assert connection.session.generation == 1


@pytest.mark.full
def test_a_token_that_the_broker_refuses_is_asked_for_again(
    quick: None, amqp_peer: AmqpPeer
) -> None:
    provider = Provider(0.3, None)
    with Connection(amqp_peer.url, credential_provider=provider) as connection:
        connection.connect()
        amqp_peer.end.expect(UPDATE)
        amqp_peer.end.method(0, spec.Connection.Close, "BsBB", 530, "NOT_ALLOWED - no", *UPDATE)
        until(lambda: not connection.connected)
        connection.connect()
        assert b"token-3" in amqp_peer.end.expect(spec.Connection.StartOk)[2]


def test_closing_ends_a_renewal_under_way(quick: None, taking: AmqpPeer) -> None:
    began, never = Event(), Event()

    class Slow(Provider):
        def get_credentials(self) -> tuple[str, str]:
            if self.given:
                began.set()
                never.wait()
            return super().get_credentials()

    with Connection(taking.url, credential_provider=Slow(0.2)) as connection:
        connection.connect()
        assert began.wait(CAME)
    # The leak check finds the greenlet if it is still there.


@pytest.mark.full
def test_it_may_be_interrupted_at_any_switch(taking: AmqpPeer) -> None:
    with Connection(taking.url) as connection:
        connection.connect()
        for _ in interruptions(lambda: connection.update_secret("new"), delays=(0, 1)):
            # The answers still reach those that they are for.
            connection.update_secret("newer", timeout=CAME)
        assert connection.session.generation == 1


def test_links_without_the_facade_take_a_new_secret(amqp_links: Links) -> None:
    link = amqp_links()
    link.client.transport_options = {}
    link.secret.update("guest", "a link of its own", Deadline(CAME))
    assert link.connected


def test_other_transports_have_no_such_thing(unique: str) -> None:
    with Connection(f"memory:///{unique}") as connection:
        connection.connect()
        with pytest.raises(NotImplementedError, match="cannot change the login"):
            connection.update_secret("new")
