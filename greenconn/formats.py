"""Encoders and decoders of the serializers, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from json import JSONDecodeError
from typing import Any, Final

from greenconn.exceptions import DecodeError, EncodeError, SerializerNotInstalled
from greenconn.jsoncodec import as_plain

#: Limit of the entries that the mappings of a YAML body merge from other mappings.
YAML_MERGED: Final = 100_000


# These packages are imported when they are first needed: they are optional, and slow to import.


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
    """Encode a value as YAML; only YAML's safe types are possible."""
    return _yaml().dump(value, Dumper=_yaml_dumper())


@cache
def _yaml_dumper() -> Any:
    """Return PyYAML's safe dumper, which also takes objects with fields."""

    class Dumper(_yaml().SafeDumper):  # type: ignore[misc]
        def represent_other(self, value: Any) -> Any:
            plain = as_plain(value)
            return self.represent_undefined(value) if plain is value else self.represent_data(plain)

    Dumper.add_representer(None, Dumper.represent_other)
    return Dumper


def yaml_loads(body: Any) -> Any:
    """Decode YAML; only values of YAML's safe types are created."""
    # PyYAML treats anything but text and bytes as a file.
    is_buffer = isinstance(body, (bytearray, memoryview))
    return _yaml().load(bytes(body) if is_buffer else body, _yaml_loader())


@cache
def _yaml_loader() -> Any:
    """Return PyYAML's safe loader with a limit on merging.

    Without it small bodies become gigabytes: many mappings that merge a large one, and with PyYAML
    before 6.0.4 mappings that merge each other ten times, ten levels deep.
    """
    yaml = _yaml()

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        merged = 0
        depth = 0

        def flatten_mapping(self, node: Any) -> None:
            self.depth += 1
            super().flatten_mapping(node)
            self.depth -= 1
            if self.depth:  # this mapping is being merged into another one
                self.merged += len(node.value)
                if self.merged > YAML_MERGED:
                    raise ValueError(f"a YAML body must merge at most {YAML_MERGED} keys")

    return Loader


def msgpack_dumps(value: Any) -> Any:
    """Encode a value as MessagePack, which distinguishes text and bytes."""
    return _msgpack().packb(value, use_bin_type=True, default=as_plain)


def msgpack_loads(body: Any) -> Any:
    """Decode MessagePack."""
    return _msgpack().unpackb(body, raw=False)


def encode_error(exc: BaseException, content_type: str) -> EncodeError:
    """Return the error for a value that cannot be encoded.  It never quotes the value."""
    reason = type(exc).__name__
    # These texts of json name types only.  Other texts may quote the body.
    if type(exc) is TypeError and str(exc).startswith(("Object of type ", "keys must be ")):
        reason += f": {exc}"
    return EncodeError(f"cannot encode a body as {content_type}: {reason}")


def decode_error(exc: BaseException, what: str) -> DecodeError:
    """Return the error for a body that cannot be decoded.  It never quotes the body."""
    reason = type(exc).__name__
    if isinstance(exc, JSONDecodeError):
        reason += f" at character {exc.pos}"
    elif isinstance(exc, UnicodeDecodeError):
        reason += f" at byte {exc.start}: {exc.reason}"
    return DecodeError(f"cannot decode a body {what}: {reason}")


def utf8(text: str, content_type: str) -> bytes:
    """Encode a text body as UTF-8.

    Raises:
        EncodeError: the text contains lone surrogates.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise encode_error(exc, content_type) from exc


def raw_encode(data: Any) -> tuple[str, str, Any]:
    """Return content type, content encoding and body, without a serializer.

    Text is encoded as UTF-8; anything else is returned as it is.

    Raises:
        EncodeError: the text contains lone surrogates.
    """
    if isinstance(data, str):
        return "application/data", "utf-8", utf8(data, "application/data")
    return "application/data", "binary", data


def _pickle_load(file: Any) -> Any:
    import pickle  # most programs never need it

    return pickle.load(file)


def pickle_loads(s: Any, load: Callable[[Any], Any] = _pickle_load) -> Any:
    """Unpickle bytes or a buffer, which must come from a trusted sender."""
    return load(BytesIO(s))


def unpickle(s: Any) -> Any:
    """Unpickle bytes, a buffer or text, which must come from a trusted sender."""
    return pickle_loads(s.encode("utf-8") if isinstance(s, str) else s)
