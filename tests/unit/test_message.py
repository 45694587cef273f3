"""A received message: answers, decoding, and what a quick subclass may leave out."""

from __future__ import annotations

import logging
import zlib
from typing import Any

import pytest

from greenconn.exceptions import ContentDisallowed, DecodeError, MessageStateError
from greenconn.message import ACK_STATES, Message


class ScriptedChannel:
    """Notes the answers, and raises what it was told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.no_ack_consumers: set[str] | None = set()
        self.answers: list[tuple[Any, ...]] = []
        self.flushes_acks = False
        self.flushes = 0
        self.error = error

    def flush_acks(self) -> None:
        assert self.answers
        self.flushes += 1

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        self._answer("ack", delivery_tag, multiple)

    def basic_reject(self, delivery_tag: Any, requeue: bool) -> None:
        self._answer("reject", delivery_tag, requeue)

    def _answer(self, *answer: Any) -> None:
        if self.error is not None:
            raise self.error
        self.answers.append(answer)


@pytest.fixture
def channel() -> ScriptedChannel:
    return ScriptedChannel()


def json_message(body: bytes = b'{"a": 1}', **kwargs: Any) -> Message:
    return Message(body, content_type="application/json", content_encoding="utf-8", **kwargs)


@pytest.mark.parametrize("multiple", [False, True])
def test_ack(channel: ScriptedChannel, multiple: bool) -> None:
    message = Message(delivery_tag=7, channel=channel)
    message.ack(multiple)
    assert channel.answers == [("ack", 7, multiple)]
    assert message.acknowledged
    assert message._state == "ACK"


@pytest.mark.parametrize("requeue", [False, True])
def test_reject(channel: ScriptedChannel, requeue: bool) -> None:
    message = Message(delivery_tag=7, channel=channel)
    message.reject(requeue=requeue)
    assert channel.answers == [("reject", 7, requeue)]
    assert message._state == "REJECTED"


@pytest.mark.parametrize("first", ["ack", "reject", "requeue"])
@pytest.mark.parametrize("second", ["ack", "reject", "requeue"])
def test_second_settlement_is_refused(channel: ScriptedChannel, first: str, second: str) -> None:
    message = Message(delivery_tag=7, channel=channel)
    getattr(message, first)()
    assert message._state in ACK_STATES
    with pytest.raises(
        MessageStateError,
        match=r"message 7 is already acknowledged or rejected: .*" + message._state,
    ):
        getattr(message, second)()
    assert len(channel.answers) == 1


@pytest.mark.parametrize("answer", ["ack", "reject", "requeue"])
def test_no_channel(answer: str) -> None:
    with pytest.raises(MessageStateError, match="no channel"):
        getattr(Message(delivery_tag=7), answer)()


@pytest.mark.parametrize("answer", ["ack", "reject", "requeue"])
@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt()])
def test_settlement_that_fails_may_be_repeated(answer: str, error: BaseException) -> None:
    message = Message(delivery_tag=7, channel=ScriptedChannel(error))
    with pytest.raises(type(error)):
        getattr(message, answer)()
    assert not message.acknowledged
    message.channel.error = None
    getattr(message, answer)()
    assert message.acknowledged


def test_settlement_counts_while_it_is_sent(channel: ScriptedChannel) -> None:
    """A second greenlet that answers while the first one waits to write is refused."""

    class Waiting(ScriptedChannel):
        def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
            with pytest.raises(MessageStateError):
                message.reject()
            super().basic_ack(delivery_tag, multiple)

    message = Message(delivery_tag=7, channel=Waiting())
    message.ack()
    assert message.channel.answers == [("ack", 7, False)]


@pytest.mark.parametrize("answer", ["ack", "reject", "requeue"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("flush", [None, True, False])
def test_settlement_is_flushed_where_that_is_asked_for(
    channel: ScriptedChannel, answer: str, at_once: bool, flush: bool | None
) -> None:
    channel.flushes_acks = at_once
    message = Message(delivery_tag=7, channel=channel)
    getattr(message, answer)(flush=flush)
    assert message.acknowledged
    assert channel.flushes == (at_once if flush is None else flush)


def test_no_ack_consumer(channel: ScriptedChannel) -> None:
    channel.no_ack_consumers = {"tag"}
    message = Message(delivery_tag=7, channel=channel, delivery_info={"consumer_tag": "tag"})
    message.ack()
    message.ack()
    assert channel.answers == []
    other = Message(delivery_tag=8, channel=channel, delivery_info={"exchange": ""})
    other.ack()
    channel.no_ack_consumers = None
    message.ack()
    assert channel.answers == [("ack", 8, False), ("ack", 7, False)]


def test_log_error(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.message")
    message = Message(delivery_tag=7, channel=ScriptedChannel(KeyError("x")))
    message.ack_log_error(logger, (KeyError,))
    message.reject_log_error(logger, KeyError)
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "CRITICAL"]
    assert "Couldn't ack 7" in caplog.text
    assert "Couldn't reject 7" in caplog.text
    with pytest.raises(KeyError):
        message.ack_log_error(logger, (ValueError,))


def test_broken_pipe_is_logged_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    message = Message(delivery_tag=7, channel=ScriptedChannel(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        message.ack_log_error(logging.getLogger("tests.message"), (OSError,))
    assert "Couldn't ack 7" in caplog.text


def test_payload_is_decoded_once() -> None:
    message = json_message()
    assert message.payload == {"a": 1}
    assert message.decode() is message.payload


@pytest.mark.parametrize("body", [b"{}", b"[]", b"0", b"false", b'""'])
def test_empty_values_are_decoded_once_too(body: bytes) -> None:
    message = json_message(body)
    value = message.payload
    message.body = b"no json"
    assert message.payload is value


def test_null() -> None:
    message = json_message(b"null")
    assert message.payload is None
    assert message.payload is None


def test_accept() -> None:
    message = json_message(accept={"application/x-msgpack"})
    with pytest.raises(ContentDisallowed, match="untrusted content of type json"):
        message.decode()
    message.accept = {"application/json"}
    assert message.payload == {"a": 1}


def test_text_without_a_body() -> None:
    assert Message(b"", content_type="text/plain", content_encoding="utf-8").payload == ""


def test_compressed_body() -> None:
    message = json_message(zlib.compress(b"[1]"), headers={"compression": "application/x-gzip"})
    assert message.body == b"[1]"
    assert message.payload == [1]


def test_damaged_compression_is_noted() -> None:
    message = json_message(b"secret", headers={"compression": "gzip"})
    assert message.body == b"secret"
    ((exc_type, exc, traceback),) = message.errors
    assert exc_type is DecodeError
    assert isinstance(exc, DecodeError)
    assert traceback is not None
    with pytest.raises(DecodeError, match="application/x-gzip"):
        message.payload  # noqa: B018 - the property is what is tested


def test_postencode() -> None:
    assert Message("ä", postencode="latin-1").body == b"\xe4"
    assert Message(b"x", postencode="latin-1").body == b"x"
    message = Message("ä", postencode="ascii")
    assert message.body == "ä"
    assert message.errors[0][0] is DecodeError


def test_repr_shows_no_body() -> None:
    message = json_message(
        b'"secret"',
        delivery_tag=7,
        properties={"correlation_id": "cid"},
        delivery_info={"exchange": "ex", "routing_key": "rk"},
        headers={"token": "secret"},
    )
    shown = repr(message)
    for part in ("RECEIVED", "application/json", "7", "'body_length': 8", "cid", "ex", "rk"):
        assert part in shown
    assert "secret" not in shown
    assert "RECEIVED" in repr(Message())
