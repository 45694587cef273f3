"""Encrypted bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("cryptography")

import greenconn
from greenconn import Queue
from greenconn.contrib.encryption import CONTENT_TYPE, generate_key, register_encryption
from greenconn.exceptions import ContentDisallowed, DecodeError
from greenconn.serialization import dumps, loads, unregister
from greenconn.testing import MemoryBroker
from tests.fix_wires import until

SOON = 60.0


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    yield
    unregister("encrypted")


def encrypted(body: Any) -> bytes:
    content_type, encoding, data = dumps(body, "encrypted")
    assert (content_type, encoding) == (CONTENT_TYPE, "binary")
    assert isinstance(data, bytes)
    return data


def decrypted(data: bytes) -> Any:
    return loads(data, CONTENT_TYPE, "binary", accept={CONTENT_TYPE})


BODY = {"card": "4111 1111 1111 1111", "amount": 7}


def test_there_and_back() -> None:
    register_encryption([generate_key()])
    data = encrypted(BODY)
    assert b"4111" not in data
    assert decrypted(data) == BODY
    assert encrypted(BODY) != data  # each has a nonce of its own


def test_keys_are_replaced_one_after_the_other() -> None:
    old, new = generate_key(), generate_key()
    register_encryption([old])
    by_old = encrypted(BODY)
    register_encryption([old, new])
    assert decrypted(by_old) == BODY
    register_encryption([new, old])
    by_new = encrypted(BODY)
    assert decrypted(by_old) == decrypted(by_new) == BODY
    register_encryption([new])
    assert decrypted(by_new) == BODY
    with pytest.raises(DecodeError, match="must be of a key that is known here, got key"):
        decrypted(by_old)


def test_what_was_changed_is_refused() -> None:
    register_encryption([generate_key()])
    data = encrypted(BODY)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(DecodeError):
            decrypted(bytes(changed))
    for length in range(1, len(data)):
        with pytest.raises(DecodeError):
            decrypted(data[:length])


@pytest.mark.parametrize("serializer", ["json", "raw"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_other_serializers_and_compression(serializer: str, compression: str | None) -> None:
    register_encryption([generate_key()], serializer=serializer, compression=compression)
    body = "x" * 10_000
    data = encrypted(body)
    assert (len(data) < 1000) == (compression is not None)
    assert decrypted(data) in (body, body.encode())


def test_what_is_disabled_stays_disabled() -> None:
    register_encryption([generate_key()], serializer="pickle")
    data = encrypted(BODY)
    with pytest.raises(ContentDisallowed):
        decrypted(data)


def test_over_a_broker() -> None:
    register_encryption([generate_key()])
    received: list[Any] = []
    mail = Queue("mail")
    with MemoryBroker() as broker:
        greenconn.publish(mail, BODY, serializer="encrypted")
        (message,) = broker.messages("mail")
        assert message.content_type == CONTENT_TYPE
        greenconn.spawn_consumer(
            mail, lambda body, message: received.append(body), accept=["encrypted"]
        )
        until(lambda: received, SOON)
        greenconn.publish(mail, BODY)  # in clear: refused
        until(lambda: not broker.count("mail"), SOON)
    assert received == [BODY]


@pytest.mark.parametrize("key", ["", "short", "ä", b"\xff", generate_key()[:-8]])
def test_wrong_keys(key: Any) -> None:
    with pytest.raises(ValueError, match="key must be 32 bytes in urlsafe base64") as caught:
        register_encryption([key])
    assert not key or str(key) not in str(caught.value)
    nothing: Any = []
    for keys in (nothing, generate_key()):
        with pytest.raises(ValueError, match="keys must be a list of one or more keys"):
            register_encryption(keys)
    register_encryption([generate_key()])  # for the fixture
