"""Formats of bodies, and the errors for a body that fits none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from json import JSONDecodeError
from typing import Any, Final

from greenconn.exceptions import DecodeError, EncodeError, SerializerNotInstalled

__all__ = [
    "decode_error",
    "encode_error",
    "msgpack_dumps",
    "msgpack_loads",
    "pickle_loads",
    "raw_encode",
    "unpickle",
    "utf8",
    "yaml_dumps",
    "yaml_loads",
]


#: Entries that the mappings of a YAML body may take from others by merging.
YAML_MERGED: Final = 100_000


# Imported when they are first needed: they are optional, and slow to start with.


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as exc:
        raise _not_installed("yaml", "PyYAML") from exc
    return yaml


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as exc:
        raise _not_installed("msgpack", "msgpack") from exc
    return msgpack


def _not_installed(module: str, package: str) -> SerializerNotInstalled:
    return SerializerNotInstalled(
        f"No encoder/decoder installed for {module}: pip install {package}"
    )


def yaml_dumps(value: Any) -> Any:
    """Encode as YAML, with its safe types only."""
    return _yaml().safe_dump(value)


def yaml_loads(body: Any) -> Any:
    """Decode YAML; it makes no objects but those of its safe types."""
    # PyYAML takes what is neither text nor bytes for a file.
    is_buffer = isinstance(body, (bytearray, memoryview))
    return _yaml().load(bytes(body) if is_buffer else body, _yaml_loader())


@cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader, with an end to merging.

    Mappings that merge each other ten times, ten levels deep, are 500 bytes that stand for gigabytes.
    """
    yaml = _yaml()

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        merged = 0
        depth = 0

        def flatten_mapping(self, node: Any) -> None:
            self.depth += 1
            super().flatten_mapping(node)
            self.depth -= 1
            if self.depth:  # it is on its way into another one
                self.merged += len(node.value)
                if self.merged > YAML_MERGED:
                    raise ValueError("too many keys are merged")

    return Loader


def msgpack_dumps(value: Any) -> Any:
    """Encode as MessagePack, with text and bytes apart."""
    return _msgpack().packb(value, use_bin_type=True)


def msgpack_loads(body: Any) -> Any:
    """Decode MessagePack."""
    return _msgpack().unpackb(body, raw=False)


def encode_error(exc: BaseException, content_type: str) -> EncodeError:
    """Return the error for a value that cannot be encoded; it never quotes the value."""
    reason = type(exc).__name__
    # json's own words name types only.  Those of others may quote the body.
    if isinstance(exc, TypeError) and str(exc).startswith(("Object of type ", "keys must be ")):
        reason += f": {exc}"
    return EncodeError(f"cannot encode a body as {content_type}: {reason}")


def decode_error(exc: BaseException, what: str) -> DecodeError:
    """Return the error for a body that cannot be decoded; it never quotes the body."""
    reason = type(exc).__name__
    if isinstance(exc, JSONDecodeError):
        reason += f" at character {exc.pos}"
    elif isinstance(exc, UnicodeDecodeError):
        reason += f" at byte {exc.start}: {exc.reason}"
    return DecodeError(f"cannot decode a body {what}: {reason}")


def utf8(text: str, content_type: str) -> bytes:
    """Encode a text body.

    Raises:
        EncodeError: it cannot be UTF-8.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:  # lone surrogates
        raise encode_error(exc, content_type) from exc


def raw_encode(data: Any) -> tuple[str, str, Any]:
    """Encode a body without a serializer: text as UTF-8, anything else as it is.

    Raises:
        EncodeError: text that cannot be UTF-8.
    """
    if isinstance(data, str):
        return "application/data", "utf-8", utf8(data, "application/data")
    return "application/data", "binary", data


def _pickle_load(file: Any) -> Any:
    import pickle  # when it is first needed: hardly anybody does

    return pickle.load(file)


def pickle_loads(s: Any, load: Callable[[Any], Any] = _pickle_load) -> Any:
    """Unpickle bytes or a buffer.  Never do so with what a stranger sent."""
    return load(BytesIO(s))


def unpickle(s: Any) -> Any:
    """Unpickle bytes, a buffer or text.  Never do so with what a stranger sent."""
    return pickle_loads(s.encode("utf-8") if isinstance(s, str) else s)
