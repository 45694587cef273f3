"""Compression, and the limit on what a body may grow into."""

from __future__ import annotations

import bz2
import gc
import gzip
import lzma
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn import Connection, Producer, Queue, compression
from greenconn.compression import compress, decompress, encoders, get_decoder, get_encoder, register
from greenconn.exceptions import DecodeError
from greenconn.green.hub import yield_to_hub
from greenconn.transport import memory

KINDS = encoders()
MIB = 1024 * 1024


@pytest.fixture
def own_kinds() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    registered: list[dict[str, Any]] = [
        compression._aliases,
        compression._encoders,
        compression._decoders,
    ]
    before = [dict(each) for each in registered]
    yield
    for each, was in zip(registered, before, strict=True):
        each.clear()
        each.update(was)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_round_trip(kind: str, size: int) -> None:
    body = Random(size).randbytes(size)
    compressed, content_type = compress(body, kind)
    assert content_type == kind
    assert decompress(compressed, kind) == body
    assert decompress(memoryview(compressed), kind) == body
    assert decompress(bytearray(compressed), kind) == body
    assert get_decoder(kind)(compressed) == body


def test_aliases() -> None:
    assert compress("ä", "gzip") == (zlib.compress("ä".encode()), "application/x-gzip")
    for alias, kind in (
        ("zlib", "x-gzip"),
        ("bzip2", "x-bz2"),
        ("bzip", "x-bz2"),
        ("xz", "x-lzma"),
    ):
        assert get_encoder(alias)[1] == f"application/{kind}"
        assert get_decoder(alias) is get_decoder(f"application/{kind}")
    assert get_encoder("lzma")[0] is lzma.compress


def test_unknown() -> None:
    for call in (get_encoder, get_decoder):
        with pytest.raises(KeyError, match="unknown compression 'nope'; known: application/"):
            call("nope")
    with pytest.raises(KeyError):
        compress(b"", "nope")
    with pytest.raises(DecodeError, match="nope"):
        decompress(b"", "nope")


@pytest.mark.parametrize(
    "name", ["zstd", "application/zstd", "zstandard", "brotli", "application/x-brotli"]
)
def test_unknown_for_want_of_a_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    get_encoder("gzip")  # all that is installed is known now
    monkeypatch.setattr(compression, "_encoders", {"application/x-gzip": bytes})
    monkeypatch.setattr(compression, "_aliases", {})
    extra = "brotli" if "brotli" in name else "zstd"
    with pytest.raises(KeyError, match=rf"x-gzip; pip install 'greenconn\[{extra}\]'"):
        get_encoder(name)


@pytest.mark.parametrize("kind", KINDS)
def test_limit(kind: str) -> None:
    body = b"\0" * (32 * MIB)
    compressed, _ = compress(body, kind)
    assert decompress(compressed, kind, limit=len(body)) == body
    for limit in (len(body) - 1, 1000, 0):
        with pytest.raises(
            DecodeError, match=rf"{kind} holds more than the limit of {limit} bytes"
        ):
            decompress(compressed, kind, limit=limit)


def test_limit_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed, _ = compress(b"x" * 11, "gzip")
    monkeypatch.setattr(compression, "MAX_DECOMPRESSED_SIZE", 10)
    with pytest.raises(DecodeError, match="MAX_DECOMPRESSED_SIZE"):
        decompress(compressed, "gzip")
    assert len(decompress(compressed, "gzip", limit=11)) == 11


@pytest.mark.parametrize("kind", KINDS)
def test_empty_body_fits_every_limit(kind: str) -> None:
    assert decompress(compress(b"", kind)[0], kind, limit=0) == b""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_cut_off(kind: str, keep: float) -> None:
    compressed, _ = compress(Random(1).randbytes(1000), kind)
    cut = compressed[: int(len(compressed) * keep) if isinstance(keep, float) else int(keep)]
    with pytest.raises(DecodeError, match=kind):
        decompress(cut, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str) -> None:
    with pytest.raises(DecodeError, match=f"cannot decompress a body as {kind}") as caught:
        decompress(b"no such format, by far", kind)
    assert caught.value.__cause__ is not None
    with pytest.raises(DecodeError):
        decompress("text", kind)


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_streams_one_after_the_other(pack: object) -> None:
    assert callable(pack)
    kind = "bzip2" if pack is bz2.compress else "lzma"
    both = pack(b"a" * 1000) + pack(b"b" * 1000)
    assert decompress(both, kind) == b"a" * 1000 + b"b" * 1000
    assert decompress(both + b"\0" * 8, kind) == b"a" * 1000 + b"b" * 1000
    with pytest.raises(DecodeError, match="limit"):
        decompress(both, kind, limit=1500)
    with pytest.raises(DecodeError, match="more than 1024 streams"):
        decompress(pack(b"") * 1025, kind)


def test_second_stream_cut_off() -> None:
    first, second = bz2.compress(b"a"), bz2.compress(Random(1).randbytes(1_000_000))
    with pytest.raises(DecodeError, match="truncated"):
        decompress(first + second[:-100_000], "bzip2")


def test_real_gzip() -> None:
    assert decompress(gzip.compress(b"x"), "gzip") == b"x"


def test_window_of_a_hostile_header() -> None:
    """A header that asks for gigabytes of memory is refused."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    honest = lzma.compress(b"x", filters=filters)
    assert decompress(honest, "xz") == b"x"
    # .lzma (the old format) writes the dictionary's size in bytes 1 to 4.
    old = bytearray(lzma.compress(b"x", format=lzma.FORMAT_ALONE))
    assert decompress(old, "xz") == b"x"
    old[1:5] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(DecodeError, match="emory"):
        decompress(old, "xz")


def test_register(own_kinds: None) -> None:
    register(
        lambda body: body[::-1], lambda body: bytes(body[::-1]), "application/x-back", ["back"]
    )
    assert "application/x-back" in encoders()
    assert compress("ab", "back") == (b"ba", "application/x-back")
    assert decompress(b"ba", "back", limit=1) == b"ab"
    register(bytes, bytes, "application/x-same")
    assert compress(b"x", "application/x-same") == (b"x", "application/x-same")


@given(st.binary(max_size=200), st.sampled_from(KINDS), st.integers(0, 250))
@settings(derandomize=True)
def test_limit_is_exact(body: bytes, kind: str, limit: int) -> None:
    compressed, _ = compress(body, kind)
    if len(body) <= limit:
        assert decompress(compressed, kind, limit) == body
    else:
        with pytest.raises(DecodeError, match="limit"):
            decompress(compressed, kind, limit)


@given(st.binary(max_size=100), st.sampled_from(KINDS))
@settings(derandomize=True)
def test_noise_is_refused_or_decoded(noise: bytes, kind: str) -> None:
    try:
        decompress(noise, kind, limit=1000)
    except DecodeError:
        pass


@pytest.mark.parametrize("name", [5, [], {}, True, b"zlib", ("zlib",), "no-such"])
def test_a_header_may_name_anything(name: Any) -> None:
    with pytest.raises(DecodeError, match="unknown compression"):
        decompress(b"x", name)


@pytest.mark.usefixtures("own_kinds")
def test_what_others_decode_fails_in_our_way() -> None:
    register(lambda body: body, lambda body: {}[body], "application/x-theirs", ["theirs"])
    with pytest.raises(DecodeError, match="as theirs: KeyError"):
        decompress(b"x", "theirs")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_refused_is_let_go_of(kind: str) -> None:
    compressed, _ = compress(b"\0" * (6 * MIB), kind)
    gc.collect()
    gc.disable()  # nobody's collector helps
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        errors = []
        for damaged in (compressed, compressed[:-1]):
            for limit in (4 * MIB, 8 * MIB):
                try:
                    decompress(damaged, kind, limit=limit)
                except DecodeError as exc:
                    errors.append(exc)  # and with it its traceback
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert len(errors) >= 2
    assert after - before < 2 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_others_have_turns_meanwhile(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_PACE", 0.0)
    compressed, _ = compress(b"\0" * (4 * MIB), kind)
    turns: list[None] = []

    def others() -> None:
        while True:
            turns.append(None)
            yield_to_hub()

    greenlet = gevent.spawn(others)
    try:
        assert len(decompress(compressed, kind)) == 4 * MIB
        assert len(turns) >= 4
    finally:
        greenlet.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_switches_in_the_hub(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_PACE", 0.0)
    compressed, _ = compress(b"\0" * MIB, kind)
    outcome: AsyncResult[int] = AsyncResult()
    gevent.get_hub().loop.run_callback(lambda: outcome.set(len(decompress(compressed, kind))))
    assert outcome.get(timeout=20) == MIB


def test_killed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_PACE", 0.0)
    compressed, _ = compress(b"\0" * (16 * MIB), "gzip")
    greenlet: gevent.Greenlet[..., object] = gevent.spawn(decompress, compressed, "gzip")
    yield_to_hub()
    greenlet.kill()
    assert isinstance(greenlet.value, gevent.GreenletExit)
    assert len(decompress(compressed, "gzip")) == 16 * MIB


@pytest.mark.parametrize("transport", ["memory", "sqlite"])
def test_message_is_unpacked_when_it_is_asked_for(
    transport: str, tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_PACE", 0.0)
    monkeypatch.setattr(compression, "MAX_DECOMPRESSED_SIZE", 2 * MIB)
    url = f"memory:///{unique}" if transport == "memory" else f"sqlite:///{tmp_path}/broker.db"
    with Connection(url) as connection:
        queue = Queue(unique)(connection)
        queue.declare()
        producer = Producer(connection)
        for size in (MIB, 3 * MIB):
            producer.publish("x" * size, routing_key=unique, compression="gzip")
        good: Any = queue.get(no_ack=True)
        readers = [gevent.spawn(lambda: good.payload) for _ in range(3)]
        assert [len(each.get(timeout=20)) for each in readers] == [MIB] * 3
        assert good.errors == []
        with pytest.raises(DecodeError, match="holds more than the limit"):
            queue.get(no_ack=True)
    if transport == "memory":
        memory.reset(unique)
