"""Compression of bodies, with a limit on what a compressed body may grow into.

A few hundred bytes can stand for gigabytes, so the decoders here are asked for a piece at a time and
stop as soon as the limit is passed.  None of them ever holds much more than the limit, what was refused
is let go of before the error is raised, and the hub has a turn when a body takes long.

The modules that compress are imported when the first body is compressed or decompressed: together
they take as long as the rest of a client.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from time import monotonic
from types import ModuleType
from typing import Any, Final, Protocol

from gevent import get_hub
from greenlet import getcurrent

from greenconn.encoding import ensure_bytes
from greenconn.exceptions import DecodeError

__all__ = [
    "MAX_DECOMPRESSED_SIZE",
    "compress",
    "decompress",
    "encoders",
    "get_decoder",
    "get_encoder",
    "register",
]

#: Bytes that a body may have after decompression, where the call says nothing.
MAX_DECOMPRESSED_SIZE = 64 * 1024 * 1024

#: Bytes fed at a time; it bounds what is copied when one stream ends and another begins.
_FEED: Final = 64 * 1024

#: Bytes asked for at a time, and seconds after which the hub has a turn.
_PIECE: Final = 512 * 1024
_PACE: Final = 0.01

#: Streams that one body may be a concatenation of.
_MAX_STREAMS: Final = 1024

#: Bytes of memory that an xz header may ask for; the highest preset needs 65 MiB.
_LZMA_MEMORY: Final = 128 * 1024 * 1024

Encoder = Callable[[bytes], bytes]
Decoder = Callable[[Any], bytes]


class _Inflater(Protocol):
    """A decompressor of one stream; those of bz2, lzma and zstd are alike."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Any, max_length: int) -> bytes: ...


class _StreamDecoder:
    """Decodes bodies of one content type.

    Arguments:
        content_type: for messages.
        make: makes a decompressor.
        concatenated: whether streams may follow each other.
    """

    def __init__(
        self, content_type: str, make: Callable[[], _Inflater], concatenated: bool = True
    ) -> None:
        self.content_type = content_type
        self.make = make
        self.max_streams = _MAX_STREAMS if concatenated else 1

    def __call__(self, body: Any, limit: int | None = None) -> bytes:
        """Return *body* decompressed.  May switch where it takes long.

        Raises:
            DecodeError: it is damaged, cut off, or holds more than *limit* bytes.
        """
        limit = MAX_DECOMPRESSED_SIZE if limit is None else limit
        try:
            with memoryview(body) as view, view.cast("B") as octets:
                return self._inflate(octets, limit)
        except DecodeError:
            raise
        except Exception as exc:
            raise DecodeError(
                f"cannot decompress a body as {self.content_type}: {type(exc).__name__}: {exc}"
            ) from exc

    def _inflate(self, octets: memoryview, limit: int) -> bytes:
        # It grows and is handed over without a copy of the whole, which would block the hub.
        with BytesIO() as out:
            # Its end frees what it holds.  An error keeps this frame, and so would keep that.
            if self._inflate_all(octets, limit, out):
                return out.getvalue()
        raise DecodeError(
            f"a body compressed as {self.content_type} holds more than the limit of "
            f"{limit} bytes (greenconn.compression.MAX_DECOMPRESSED_SIZE)"
        )

    def _inflate_all(self, octets: memoryview, limit: int, out: BytesIO) -> bool:
        """Write the content of all streams to *out*; False: there is more than *limit*."""
        pace = _Pace()
        left, at = limit, 0
        for number in range(self.max_streams):
            written = out.tell()
            try:
                at, left = self._inflate_stream(octets, at, left, out, pace)
            except Exception:
                # What follows the last stream and is none is ignored, as the stdlib does.
                if number and out.tell() == written:
                    return True
                raise
            if left < 0:
                return False
            if at >= len(octets):
                return True
        if self.max_streams > 1:
            raise DecodeError(
                f"a body compressed as {self.content_type} has more than {self.max_streams} streams"
            )
        return True

    def _inflate_stream(
        self, octets: memoryview, at: int, left: int, out: BytesIO, pace: _Pace
    ) -> tuple[int, int]:
        """Write one stream's content to *out*.

        Returns:
            where the next stream begins, and how many more bytes there may be; below 0: there were
            more than *left*.
        """
        inflater = self.make()
        try:
            while not inflater.eof and left >= 0:
                piece = octets[at : at + _FEED] if inflater.needs_input else b""
                if not piece and inflater.needs_input:
                    raise DecodeError(f"a body compressed as {self.content_type} is truncated")
                # One byte more than allowed tells "too much" from "just enough".
                part = inflater.decompress(piece, min(left + 1, _PIECE))
                at += len(piece)
                left -= len(part)
                out.write(part)
                pace.keep()
            return at - len(inflater.unused_data), left
        finally:
            del inflater  # with its window; an error keeps this frame


class _Pace:
    """Gives the hub a turn when one greenlet has computed for long."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = monotonic()

    def keep(self) -> None:
        """Let others run if it is time.  May switch, but not in the hub."""
        if monotonic() - self._since < _PACE:
            return
        hub = get_hub()
        if getcurrent() is not hub:
            # See green.hub.turn(), which this room is below.
            timer = hub.loop.timer(0, 0, True, -1)
            try:
                hub.wait(timer)
            finally:
                timer.close()
        self._since = monotonic()


class _ZlibInflater:
    """Gives zlib's decompressor the shape of the others."""

    def __init__(self, zlib: ModuleType) -> None:
        # zlib's format is what kombu sends as x-gzip; + 32 takes real gzip as well.
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS + 32)
        self._has_more = False

    @property
    def eof(self) -> bool:
        return bool(self._inflater.eof)

    @property
    def needs_input(self) -> bool:
        return not self._has_more

    @property
    def unused_data(self) -> bytes:
        unused: bytes = self._inflater.unused_data
        return unused

    def decompress(self, data: Any, max_length: int) -> bytes:
        part: bytes = self._inflater.decompress(self._inflater.unconsumed_tail or data, max_length)
        self._has_more = bool(self._inflater.unconsumed_tail) or len(part) >= max_length
        return part


class _BrotliInflater:
    """Gives brotli's decompressor the shape of the others."""

    unused_data = b""

    def __init__(self, brotli: ModuleType) -> None:
        self._inflater = brotli.Decompressor()
        self._has_more = False

    @property
    def eof(self) -> bool:
        return bool(self._inflater.is_finished())

    @property
    def needs_input(self) -> bool:
        return not self._has_more

    def decompress(self, data: Any, max_length: int) -> bytes:
        part: bytes = self._inflater.process(bytes(data), output_buffer_limit=max_length)
        # One of just that length may hide that there is more.
        self._has_more = len(part) >= max_length or not self._inflater.can_accept_more_data()
        return part


#: What the last part of an alias or content type needs that is not installed with greenconn.
_EXTRAS: Final = {"brotli": "brotli", "x-brotli": "brotli", "zstd": "zstd", "zstandard": "zstd"}

_aliases: dict[str, str] = {}
_encoders: dict[str, Encoder] = {}
_decoders: dict[str, Decoder] = {}


def register(
    encoder: Encoder, decoder: Decoder, content_type: str, aliases: Iterable[str] | None = None
) -> None:
    """Add a way to compress.

    Arguments:
        encoder: compresses bytes.
        decoder: decompresses them; it is called without a limit.
        content_type: its MIME type, which travels in the header ``compression``.
        aliases: shorter names for it.
    """
    _register_known()
    _add(encoder, decoder, content_type, aliases)


def _add(
    encoder: Encoder, decoder: Decoder, content_type: str, aliases: Iterable[str] | None
) -> None:
    _encoders[content_type] = encoder
    _decoders[content_type] = decoder
    _aliases.update(dict.fromkeys(aliases or (), content_type))


def encoders() -> list[str]:
    """Return the content types that can be used here."""
    _register_known()
    return list(_encoders)


def get_encoder(t: str) -> tuple[Encoder, str]:
    """Return the encoder of a content type or alias, with the content type.

    Raises:
        KeyError: there is none.
    """
    _register_known()
    t = _aliases.get(t, t)
    try:
        return _encoders[t], t
    except KeyError:
        raise KeyError(_unknown(t)) from None


def get_decoder(t: str) -> Decoder:
    """Return the decoder of a content type or alias.

    Raises:
        KeyError: there is none.
    """
    _register_known()
    t = _aliases.get(t, t)
    try:
        return _decoders[t]
    except KeyError:
        raise KeyError(_unknown(t)) from None


def _unknown(name: object) -> str:
    extra = _EXTRAS.get(str(name).rpartition("/")[2])
    remedy = f"; pip install 'greenconn[{extra}]'" if extra else ""
    return f"unknown compression {name!r}; known: {', '.join(sorted(_encoders))}{remedy}"


def compress(body: str | bytes, content_type: str) -> tuple[bytes, str]:
    """Return *body* compressed, with the content type of the compression.

    Arguments:
        body: text is encoded as UTF-8 first.
        content_type: content type or alias of the compression.

    Raises:
        KeyError: there is no such compression.
    """
    encoder, content_type = get_encoder(content_type)
    return encoder(ensure_bytes(body)), content_type


def decompress(body: Any, content_type: str, limit: int | None = None) -> bytes:
    """Return *body* decompressed.  May switch where it takes long.

    Arguments:
        body: bytes, or a buffer.
        content_type: content type or alias of the compression.
        limit: bytes that the result may have; None means ``MAX_DECOMPRESSED_SIZE``.  It does not
            hold back decoders that were registered from outside.

    Raises:
        DecodeError: there is no such compression, or the body is damaged, cut off or too large.
    """
    try:
        decoder = get_decoder(content_type)
    except KeyError as exc:
        raise DecodeError(exc.args[0]) from exc
    except TypeError as exc:  # a header may be anything
        raise DecodeError(_unknown(type(content_type).__name__)) from exc
    if isinstance(decoder, _StreamDecoder):
        return decoder(body, limit)
    try:
        return decoder(body)
    except Exception as exc:
        raise DecodeError(
            f"cannot decompress a body as {content_type}: {type(exc).__name__}"
        ) from exc


def _optional(*names: str) -> ModuleType | None:
    """Return the first of these modules that is installed."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _register_stream(
    encoder: Encoder,
    make: Callable[[], _Inflater],
    content_type: str,
    aliases: tuple[str, ...],
    concatenated: bool = True,
) -> None:
    _add(encoder, _StreamDecoder(content_type, make, concatenated), content_type, aliases)


def _register_known() -> None:
    """Register what comes with us and what is installed; before the first use."""
    if not _encoders:
        _register_standard()
        _register_optional()


def _register_standard() -> None:
    import bz2
    import lzma
    import zlib

    _register_stream(
        zlib.compress,
        partial(_ZlibInflater, zlib),
        "application/x-gzip",
        ("gzip", "zlib"),
        concatenated=False,
    )
    _register_stream(bz2.compress, bz2.BZ2Decompressor, "application/x-bz2", ("bzip2", "bzip"))
    _register_stream(
        lzma.compress,
        lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
        "application/x-lzma",
        ("lzma", "xz"),
    )


def _register_optional() -> None:
    brotli = _optional("brotli", "brotlicffi")
    # An older one has no limit of the output: it counts as not installed.
    if brotli is not None and hasattr(brotli.Decompressor, "can_accept_more_data"):
        _register_stream(
            brotli.compress,
            partial(_BrotliInflater, brotli),
            "application/x-brotli",
            ("brotli",),
            concatenated=False,
        )
    zstd = _optional("compression.zstd", "backports.zstd")
    if zstd is not None:
        _register_stream(
            zstd.compress, zstd.ZstdDecompressor, "application/zstd", ("zstd", "zstandard")
        )
