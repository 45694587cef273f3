"""Compression of bodies, with a limit on the size of a decompressed body.

A few hundred bytes can decompress to gigabytes.  So the decoders work piece by piece and stop as soon as
the limit is exceeded.  Memory stays close to the limit, a refused body is freed before the error is
raised, and a long decompression yields to the hub.

The compression modules are imported when the first body is compressed or decompressed: together they
take as long to import as the rest of a client.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gevent import get_hub
from greenlet import getcurrent

from greenconn.encoding import ensure_bytes
from greenconn.exceptions import DecodeError, error_summary

if TYPE_CHECKING:
    from bz2 import BZ2Decompressor
    from lzma import LZMADecompressor

__all__ = [
    "MAX_DECOMPRESSED_SIZE",
    "compress",
    "decompress",
    "encoders",
    "get_decoder",
    "get_encoder",
    "register",
]

#: Maximum bytes of a decompressed body, if the call gives no limit.
MAX_DECOMPRESSED_SIZE = 64 * 1024 * 1024

#: Bytes of input per step: they limit the copy of the rest when one stream ends and another begins.
_FEED: Final = 64 * 1024

#: Bytes of output per step, and seconds of computing after which the greenlet yields to the hub.
_PIECE: Final = 512 * 1024
_PACE: Final = 0.01

#: Maximum number of concatenated streams in a body.
_MAX_STREAMS: Final = 1024

#: Maximum bytes of memory for an xz stream; the highest preset needs 65 MiB.
_LZMA_MEMORY: Final = 128 * 1024 * 1024

Encoder = Callable[[bytes], bytes]
Decoder = Callable[[Any], bytes]

#: A decompressor of one stream; that of zstd has the methods of those of bz2 and lzma.
_Inflater: TypeAlias = "BZ2Decompressor | LZMADecompressor | _BrotliInflater | _ZlibInflater"


class _StreamDecoder:
    """A decoder of the bodies of one content type.

    Arguments:
        content_type: the name in errors.
        make: returns a new decompressor.
        concatenated: whether a body can consist of several streams.
    """

    def __init__(
        self, content_type: str, make: Callable[[], _Inflater], concatenated: bool = True
    ) -> None:
        self.content_type = content_type
        self.make = make
        self.max_streams = _MAX_STREAMS if concatenated else 1

    def __call__(self, body: Any, limit: int | None = None) -> bytes:
        """Return *body* decompressed.  May switch if it takes long.

        Raises:
            DecodeError: the body is damaged or truncated, or decompresses to more than *limit* bytes.
        """
        limit = MAX_DECOMPRESSED_SIZE if limit is None else limit
        try:
            with memoryview(body) as view, view.cast("B") as octets:
                return self._inflate(octets, limit)
        except DecodeError:
            raise
        except Exception as exc:
            raise DecodeError(
                f"cannot decompress a body as {self.content_type}: {error_summary(exc)}"
            ) from exc

    def _inflate(self, octets: memoryview, limit: int) -> bytes:
        # BytesIO grows and returns its bytes without a copy of the whole, which would block the hub.
        with BytesIO() as out:
            # Closing it frees the bytes; an error would keep them alive with this frame.
            if self._inflate_all(octets, limit, out):
                return out.getvalue()
        raise DecodeError(
            f"a body compressed as {self.content_type} holds more than the limit of "
            f"{limit} bytes (greenconn.compression.MAX_DECOMPRESSED_SIZE)"
        )

    def _inflate_all(self, octets: memoryview, limit: int, out: BytesIO) -> bool:
        """Write the content of all streams to *out*; return False if it is more than *limit* bytes."""
        pace = _Pace()
        left, at = limit, 0
        for number in range(self.max_streams):
            written = out.tell()
            try:
                at, left = self._inflate_stream(octets, at, left, out, pace)
            except MemoryError:
                raise
            except Exception:
                # Like the standard library, ignore garbage after the last stream.
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
        """Write the content of one stream to *out*.

        Returns:
            The position of the next stream, and the number of bytes left of the limit; negative if
            the limit is exceeded.
        """
        inflater = self.make()
        try:
            while not inflater.eof and left >= 0:
                piece = octets[at : at + _FEED] if inflater.needs_input else b""
                if not piece and inflater.needs_input:
                    raise DecodeError(f"a body compressed as {self.content_type} is truncated")
                # One byte more than allowed distinguishes a body at the limit from one above it.
                part = inflater.decompress(piece, min(left + 1, _PIECE))
                at += len(piece)
                left -= len(part)
                out.write(part)
                pace.keep()
            return at - len(inflater.unused_data), left
        finally:
            del inflater  # frees its window; an error would keep it alive with this frame


class _Pace:
    """A timer that makes a greenlet yield to the hub after it has computed for long."""

    def __init__(self) -> None:
        self._since = monotonic()

    def keep(self) -> None:
        """Yield to the hub if it is time.  May switch, but not in the hub."""
        if monotonic() - self._since < _PACE:
            return
        hub = get_hub()
        if getcurrent() is not hub:
            # As green.hub.yield_to_hub(), which this module must not import.
            timer = hub.loop.timer(0, 0, True, -1)
            try:
                hub.wait(timer)
            finally:
                timer.close()
        self._since = monotonic()


class _ZlibInflater:
    """zlib's decompressor with the interface of the others."""

    def __init__(self, zlib: ModuleType) -> None:
        # kombu sends zlib's format as x-gzip; + 32 accepts gzip, too.
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
    """brotli's decompressor with the interface of the others."""

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
        # If the part has the maximum length there may be more.
        self._has_more = len(part) >= max_length or not self._inflater.can_accept_more_data()
        return part


#: Last parts of content types and aliases -> the extras of greenconn that install them.
_EXTRAS: Final = {"brotli": "brotli", "x-brotli": "brotli", "zstd": "zstd", "zstandard": "zstd"}

_aliases: dict[str, str] = {}
_encoders: dict[str, Encoder] = {}
_decoders: dict[str, Decoder] = {}


def register(
    encoder: Encoder, decoder: Decoder, content_type: str, aliases: Iterable[str] | None = None
) -> None:
    """Register a compression.

    Arguments:
        encoder: compresses bytes.
        decoder: decompresses bytes; it is called without a limit.
        content_type: the MIME type, which messages carry in the header ``compression``.
        aliases: short names.
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
    """Return the content types of the available compressions."""
    _register_known()
    return list(_encoders)


def get_encoder(t: str) -> tuple[Encoder, str]:
    """Return the encoder of a content type or alias, with the content type.

    Raises:
        KeyError: the compression is unknown or not installed.
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
        KeyError: the compression is unknown or not installed.
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
        body: bytes; text is encoded as UTF-8.
        content_type: content type or alias of the compression.

    Raises:
        KeyError: the compression is unknown or not installed.
    """
    encoder, content_type = get_encoder(content_type)
    return encoder(ensure_bytes(body)), content_type


def decompress(body: Any, content_type: str, limit: int | None = None) -> bytes:
    """Return *body* decompressed.  May switch if it takes long.

    Arguments:
        body: bytes, or a buffer.
        content_type: content type or alias of the compression.
        limit: maximum bytes of the result; None is ``MAX_DECOMPRESSED_SIZE``.  Decoders added by
            :func:`register` have no limit.

    Raises:
        DecodeError: the compression is unknown or not installed, or the body is damaged, truncated
            or too large.
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
    """Register the available compressions before the first use."""
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
    # Older versions cannot limit the output, and count as not installed.
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
