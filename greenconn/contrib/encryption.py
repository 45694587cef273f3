"""Encrypted message bodies: a serializer that encrypts the output of another one with a shared key.

::

    from greenconn.contrib.encryption import generate_key, register_encryption

    register_encryption([os.environ["MESSAGE_KEY"]])      # at the start of each program

    greenconn.publish("mail", body, serializer="encrypted")
    greenconn.spawn_consumer("mail", handler, accept=["encrypted"])

Bodies are encrypted and authenticated with AES-256-GCM.  Headers, properties and queue names are not
encrypted.  The length of a body is not hidden, and a duplicate of a message is not detected: use
``message_id`` and :mod:`greenconn.contrib.idempotency` to detect duplicates.

An encrypted body consists of a version byte (1), 4 bytes that identify the key (the beginning of its
SHA-256), a nonce of 12 random bytes, and the AES-GCM ciphertext of the content type, the content
encoding and the serialized body.
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
    """Return a new random key as text, for use in a setting."""
    return urlsafe_b64encode(os.urandom(KEY_LENGTH)).decode()


def register_encryption(
    keys: Sequence[str],
    *,
    name: str = "encrypted",
    serializer: str = "json",
    compression: str | None = None,
) -> None:
    """Register a serializer that encrypts message bodies.  A second call replaces the keys.

    To rotate the key, first deploy the new key after the old key in all programs.  Then deploy the new
    key before the old key.  Remove the old key when no message encrypted with it is left.

    Arguments:
        keys: one or more keys from :func:`generate_key`.  The first key encrypts; all keys decrypt.
        name: the name of the serializer, for ``publish`` and ``accept``.
        serializer: the name of the serializer whose output is encrypted.
        compression: the name of the compression that is applied before encryption.  None does not
            compress.  Do not use the ``compression`` argument of ``publish``, which compresses the
            encrypted body.

    Raises:
        ValueError: *keys* is empty, or contains an invalid key.
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
    """The encryption of bodies with a set of keys, a serializer and a compression."""

    def __init__(self, keys: list[bytes], serializer: str, compression: str | None) -> None:
        self._keys = {sha256(key).digest()[:NAME_LENGTH]: AESGCM(key) for key in keys}
        self._name, self._key = next(iter(self._keys.items()))
        self._serializer = serializer
        self._compression = compression

    def encrypt(self, body: Any) -> bytes:
        """Serialize and encrypt a body."""
        content_type, encoding, data = dumps(body, self._serializer)
        data, compression = ensure_bytes(data), ""
        if self._compression is not None:
            data, compression = compress(data, self._compression)
        plain = b"\n".join([content_type.encode(), encoding.encode(), compression.encode(), data])
        head = VERSION + self._name
        nonce = os.urandom(NONCE_LENGTH)
        return head + nonce + self._key.encrypt(nonce, plain, head)

    def decrypt(self, body: Any) -> Any:
        """Decrypt and deserialize a body.

        Raises:
            DecodeError: the body was encrypted with an unknown key, or was modified.
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
