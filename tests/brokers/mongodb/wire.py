"""MongoDB's messages: OP_MSG, and OP_QUERY for the greeting of older drivers."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

from bson import BSON, decode, encode

_HEADER = struct.Struct("<iiii")
OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
#: Flag of OP_MSG: nobody waits for a reply.
MORE_TO_COME = 2


class Request(NamedTuple):
    """A command: its id, opcode, whether a reply is wanted, the database, and the document."""

    id: int
    opcode: int
    wants_reply: bool
    database: str
    command: dict[str, Any]


def _read(client: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = client.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionResetError
        parts += part
    return bytes(parts)


def read_request(client: socket.socket) -> Request:
    """Read one request.

    Raises:
        ConnectionResetError: the client hung up.
        ValueError: it is none of the two forms.
    """
    size, number, _, opcode = _HEADER.unpack(_read(client, 16))
    payload = _read(client, size - 16)
    if opcode == OP_MSG:
        return _of_message(number, payload)
    if opcode == OP_QUERY:
        end = payload.index(b"\0", 4)
        database = payload[4:end].decode().partition(".")[0]
        return Request(number, opcode, True, database, decode(payload[end + 9 :]))
    raise ValueError(f"opcode {opcode} is not spoken here")


def _of_message(number: int, payload: bytes) -> Request:
    (flags,) = struct.unpack_from("<I", payload)
    command: dict[str, Any] = {}
    sequences: dict[str, list[dict[str, Any]]] = {}
    at = 4
    while at < len(payload):
        kind = payload[at]
        (size,) = struct.unpack_from("<i", payload, at + 1)
        section = payload[at + 1 : at + 1 + size]
        at += 1 + size
        if kind == 0:
            command = decode(section)
            continue
        end = section.index(b"\0", 4)
        documents = sequences.setdefault(section[4:end].decode(), [])
        begin = end + 1
        while begin < size:
            (length,) = struct.unpack_from("<i", section, begin)
            documents.append(decode(section[begin : begin + length]))
            begin += length
    command.update(sequences)
    wants_reply = not flags & MORE_TO_COME
    return Request(number, OP_MSG, wants_reply, command.pop("$db", "admin"), command)


def reply_to(request: Request, answer: dict[str, Any]) -> bytes:
    """The bytes of an answer."""
    body: bytes = BSON(encode(answer))
    if request.opcode == OP_MSG:
        payload = struct.pack("<Ib", 0, 0) + body
        return _HEADER.pack(16 + len(payload), 1, request.id, OP_MSG) + payload
    payload = struct.pack("<iqii", 8, 0, 0, 1) + body
    return _HEADER.pack(16 + len(payload), 1, request.id, OP_REPLY) + payload
