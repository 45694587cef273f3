"""Encrypted bodies: a serializer that encrypts what another one has made, with a key of both ends.

::

    from greenconn.contrib.encryption import generate_key, register_encryption

    register_encryption([os.environ["MESSAGE_KEY"]])      # in each program, when it starts

    greenconn.publish("mail", body, serializer="encrypted")
    greenconn.spawn_consumer("mail", handler, accept=["encrypted"])

Bodies are encrypted and authenticated by AES-256-GCM.  Headers, properties and the names of queues
are not; nor is it hidden how long a body is, or that one was sent twice: ``message_id`` and
:mod:`greenconn.contrib.idempotency` are for that.

A body is: one byte that is 1, 4 bytes that name the key (the beginning of its SHA-256), a nonce of 12
random bytes, and what AES-GCM made of content type, content encoding and the serialised body.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from greenconn.compression import compress, decompress
from greenconn.encoding import ensure_bytes
from greenconn.exceptions import DecodeError
from greenconn.serialization import dumps, loads, register

__all__ = ["CONTENT_TYPE", "generate_key", "register_encryption"]

CONTENT_TYPE: Final = "application/x-greenconn-encrypted"
#: Bytes of a key, of its name in a body, and of a nonce.
KEY_LENGTH: Final = 32
NAME_LENGTH: Final = 4
NONCE_LENGTH: Final = 12
VERSION: Final = b"\x01"
_HEAD: Final = len(VERSION) + NAME_LENGTH + NONCE_LENGTH


def generate_key() -> str:
    """Return a new random key, as text for a setting."""
    return urlsafe_b64encode(os.urandom(KEY_LENGTH)).decode()


def register_encryption(
    keys: Sequence[str],
    *,
    name: str = "encrypted",
    serializer: str = "json",
    compression: str | None = None,
) -> None:
    """Register a serializer that encrypts; called again it replaces the keys.

    To change the key, give all programs the new one behind the old one, then the new one in front, and
    take the old one away when no message of it is left.

    Arguments:
        keys: of :func:`generate_key`; the first encrypts, all decrypt.
        name: of the serializer, for ``publish`` and ``accept``.
        serializer: makes the bytes that are encrypted.
        compression: compresses them before; a publish's own ``compression`` would come too late.

    Raises:
        ValueError: there is no key, or one is wrong.
    """
    if isinstance(keys, str) or not keys:
        raise ValueError("keys must be a list of one or more keys of generate_key()")
    cipher = _Cipher([_decoded(each) for each in keys], serializer, compression)
    register(name, cipher.encrypt, cipher.decrypt, CONTENT_TYPE, "binary")


def _decoded(key: str) -> bytes:
    try:
        found = urlsafe_b64decode(key)
    except (ValueError, TypeError):
        found = b""
    if len(found) != KEY_LENGTH:
        # Without its value, which is secret.
        raise ValueError(f"key must be {KEY_LENGTH} bytes in urlsafe base64: use generate_key()")
    return found


class _Cipher:
    """The keys, and what is done with a body before it is encrypted."""

    def __init__(self, keys: list[bytes], serializer: str, compression: str | None) -> None:
        self._keys = {sha256(key).digest()[:NAME_LENGTH]: AESGCM(key) for key in keys}
        self._name, self._key = next(iter(self._keys.items()))
        self._serializer = serializer
        self._compression = compression

    def encrypt(self, body: Any) -> bytes:
        """Serialise and encrypt a body."""
        content_type, encoding, data = dumps(body, self._serializer)
        data, compression = ensure_bytes(data), ""
        if self._compression is not None:
            data, compression = compress(data, self._compression)
        plain = b"\n".join([content_type.encode(), encoding.encode(), compression.encode(), data])
        head = VERSION + self._name
        nonce = os.urandom(NONCE_LENGTH)
        return head + nonce + self._key.encrypt(nonce, plain, head)

    def decrypt(self, body: Any) -> Any:
        """Decrypt and deserialise a body.

        Raises:
            DecodeError: it is of no key that is known here, or was changed.
        """
        data = bytes(body)
        head, nonce = data[: _HEAD - NONCE_LENGTH], data[_HEAD - NONCE_LENGTH : _HEAD]
        if len(data) <= _HEAD or head[:1] != VERSION:
            raise DecodeError("body must be encrypted by greenconn.contrib.encryption")
        key = self._keys.get(head[1:])
        if key is None:
            raise DecodeError(f"body must be of a key that is known here, got key {head[1:].hex()}")
        try:
            plain = key.decrypt(nonce, data[_HEAD:], head)
        except InvalidTag as exc:
            raise DecodeError("body must be as it was encrypted, but was changed") from exc
        content_type, encoding, compression, data = plain.split(b"\n", 3)
        if compression:
            data = decompress(data, compression.decode())
        return loads(data, content_type.decode(), encoding.decode())
