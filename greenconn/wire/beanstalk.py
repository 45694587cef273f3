"""Beanstalk's protocol without I/O: bytes in, replies out; and the names of tubes.

A reply is a line, in some cases followed by a body whose length the line announces.  Commands are
lines of the same kind; the functions here pack those that have arguments.  (beanstalkd 1.12,
``doc/protocol.txt``.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

#: Bytes of a tube's name.
LONGEST_TUBE: Final = 200
#: Bytes of a reply's line: the longest has a tube's name.
LONGEST_LINE: Final = 256
#: Bytes of a body, unless the parser is given another limit.
LONGEST_BODY: Final = 1024 * 1024
#: Digits of the largest number (64 bits).
DIGITS: Final = 20

#: Word -> how many numbers may follow, and whether the last of them announces a body.
_REPLIES: Final[dict[bytes, tuple[tuple[int, ...], bool]]] = {
    b"INSERTED": ((1,), False),
    b"BURIED": ((0, 1), False),
    b"EXPECTED_CRLF": ((0,), False),
    b"JOB_TOO_BIG": ((0,), False),
    b"DRAINING": ((0,), False),
    b"RESERVED": ((2,), True),
    b"DEADLINE_SOON": ((0,), False),
    b"TIMED_OUT": ((0,), False),
    b"NOT_FOUND": ((0,), False),
    b"DELETED": ((0,), False),
    b"RELEASED": ((0,), False),
    b"TOUCHED": ((0,), False),
    b"WATCHING": ((1,), False),
    b"NOT_IGNORED": ((0,), False),
    b"FOUND": ((2,), True),
    b"KICKED": ((0, 1), False),
    b"OK": ((1,), True),
    b"PAUSED": ((0,), False),
    b"OUT_OF_MEMORY": ((0,), False),
    b"INTERNAL_ERROR": ((0,), False),
    b"BAD_FORMAT": ((0,), False),
    b"UNKNOWN_COMMAND": ((0,), False),
}


class ProtocolError(Exception):
    """The bytes received are not beanstalk's protocol."""


class Reply(NamedTuple):
    """One reply.

    Attributes:
        word: its first word.
        number: the job's id, or the number of jobs or tubes; 0 where the reply has none.
        body: what followed the line.  Of ``FOUND`` it may be something else: see :func:`is_whole`.
    """

    word: bytes
    number: int = 0
    body: bytes = b""


class BeanstalkParser:
    """Parses what a server sends, however it is cut.

    Attributes:
        longest_body: bytes that a reply may announce; more is refused before memory is taken.
    """

    def __init__(self, longest_body: int = LONGEST_BODY) -> None:
        self.longest_body = longest_body
        self._buffer = bytearray()
        #: Bytes that the buffer must have before it is worth another look.
        self._needed = 0

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Take *data* in and yield the replies that are complete.

        Raises:
            ProtocolError: it is not beanstalk's protocol, or a body is announced that is too long.
        """
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._needed:
            return
        start = 0
        try:
            while (found := self._next(start)) is not None:
                reply, start = found
                yield reply
        finally:
            del buffer[:start]

    def _next(self, start: int) -> tuple[Reply, int] | None:
        """Return the reply that begins at *start*, and where it ends; None: it is not complete."""
        buffer = self._buffer
        end = buffer.find(b"\r\n", start, start + LONGEST_LINE)
        if end < 0:
            if len(buffer) - start >= LONGEST_LINE:
                raise ProtocolError(
                    f"a line exceeds {LONGEST_LINE} bytes: {bytes(buffer[start : start + 40])!r}"
                )
            self._needed = 0
            return None
        words = bytes(buffer[start:end]).split(b" ")
        if words[0] == b"USING":
            return Reply(b"USING"), end + 2
        numbers, has_body = _numbers(words)
        number = numbers[0] if numbers else 0
        if not has_body:
            return Reply(words[0], number), end + 2
        size = numbers[-1]
        if size > self.longest_body:
            raise ProtocolError(f"body of {size} bytes announced; the limit is {self.longest_body}")
        body_end = end + 2 + size
        if len(buffer) < body_end + 2:
            self._needed = body_end + 2 - start
            return None
        # A job that was deleted while the server wrote it ends as it likes (beanstalkd 1.12 and 1.13).
        if words[0] != b"FOUND" and buffer[body_end : body_end + 2] != b"\r\n":
            raise ProtocolError("a body does not end where announced")
        return Reply(words[0], number, bytes(buffer[end + 2 : body_end])), body_end + 2


def _numbers(words: list[bytes]) -> tuple[list[int], bool]:
    """Return the numbers of a reply, and whether a body follows."""
    counts, has_body = _REPLIES.get(words[0], ((), False))
    numbers = words[1:]
    if len(numbers) not in counts:
        raise ProtocolError(f"not a reply of beanstalk: {b' '.join(words)[:60]!r}")
    if not all(each.isdigit() and len(each) <= DIGITS for each in numbers):
        raise ProtocolError(f"not a number in {b' '.join(words)[:60]!r}")
    return [int(each) for each in numbers], has_body


def line(word: bytes, *arguments: int | bytes) -> bytes:
    """Pack a command without a body.

    >>> line(b"release", 7, 65536, 0)
    b'release 7 65536 0\\r\\n'
    """
    parts = (each if isinstance(each, bytes) else b"%d" % each for each in arguments)
    return b" ".join((word, *parts)) + b"\r\n"


def put(priority: int, delay: int, time_to_run: int, body: bytes) -> bytes:
    """Pack a ``put`` into the tube in use.

    Arguments:
        priority: 0 is the most urgent.
        delay, time_to_run: whole seconds.
    """
    return b"put %d %d %d %d\r\n%b\r\n" % (priority, delay, time_to_run, len(body), body)


def is_whole(found: Reply, again: Reply) -> bool:
    """Return whether the body of a job that was peeked at is the job's.

    beanstalkd (1.12 and 1.13) writes it from memory that another client frees when it deletes the
    job meanwhile: then the body is anything.

    Arguments:
        found: the reply to a peek.
        again: the reply to the same peek, sent behind it: the server had written the first one when
            it looked for this one, so a job that was there still had not been deleted.
    """
    return found.word == again.word == b"FOUND" and found.number == again.number


def statistics(body: bytes) -> dict[bytes, bytes]:
    """Read the reply to a ``stats`` command: YAML, but one ``name: value`` a line, and no more."""
    found = {}
    for each in body.split(b"\n"):
        name, colon, value = each.partition(b": ")
        if colon:
            found[name] = value.strip(b' "')
    return found


#: What a tube's name may not have, except that a hyphen may not be the first.
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9+/;.$_()-]|^[-$]|\$(?=[0-9a-f]{2})")
_ESCAPED: Final = re.compile(rb"\$([0-9a-f]{2})")


def tube_of(queue: str) -> bytes:
    """Return the name of the tube of a queue, with ``$40`` for characters such as ``@``.

    No tube for a queue begins with ``$`` and two other signs than hexadecimal digits.

    >>> tube_of("mail"), tube_of("worker@host")
    (b'mail', b'worker$40host')

    Raises:
        ValueError: the name is empty, or too long.
    """
    tube = _UNSAFE.sub(lambda found: b"$%02x" % found[0][0], queue.encode())
    if not 0 < len(tube) <= LONGEST_TUBE:
        raise ValueError(
            f"queue {queue!r}: its name as a tube must have from 1 to {LONGEST_TUBE} bytes, got "
            f"{len(tube)} (each byte that is not one of A-Z a-z 0-9 - + / ; . $ _ ( ) takes 3)"
        )
    return tube


def queue_of(tube: bytes) -> str:
    """Return the name of the queue that a tube is for; the reverse of :func:`tube_of`."""
    plain = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), tube)
    return plain.decode(errors="replace")
