"""The registry of serializers, and the content types that consumers accept.

JSON is the default.  msgpack, yaml and pickle are registered but disabled: a body is decoded with them
only if the consumer accepts them by name, or after :func:`enable_insecure_serializers`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from functools import cache
from io import BytesIO
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenconn.encoding import bytes_to_str, charset
from greenconn.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    SerializationError,
    SerializerNotInstalled,
)
from greenconn.jsoncodec import as_plain
from greenconn.jsoncodec import encode_body as json_encode
from greenconn.jsoncodec import loads as json_loads

if TYPE_CHECKING:
    import pickle

__all__ = [
    "SKIP_DECODE",
    "TRUSTED_CONTENT",
    "SerializerRegistry",
    "disable_insecure_serializers",
    "dumps",
    "enable_insecure_serializers",
    "loads",
    "pickle",
    "pickle_loads",
    "prepare_accept_content",
    "raw_encode",
    "register",
    "register_json",
    "register_msgpack",
    "register_pickle",
    "register_yaml",
    "registry",
    "unpickle",
    "unregister",
]

logger = logging.getLogger("greenconn.serialization")

#: Content encodings of binary bodies, which are not decoded to text.
SKIP_DECODE: Final = frozenset({"binary", "ascii-8bit"})

#: Content types that every consumer accepts, because their bodies are not deserialized.
TRUSTED_CONTENT: Final = frozenset({"application/data", "application/text"})

#: Content types that need no decoder, so that none is looked up in the entry points.
_PLAIN: Final = TRUSTED_CONTENT | {"text/plain", "application/octet-stream"}

#: The entry-point group of packages that provide serializers, the same as in kombu.
ENTRY_POINTS: Final = "kombu.serializers"

#: The pickle protocol for encoding.
pickle_protocol = 4

Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]


#: An encoder, with the content type and the content encoding of its output (kombu's name).
codec = NamedTuple(  # noqa: UP014 - the types of a class are texts here, each of which is compiled
    "codec", [("content_type", str), ("content_encoding", str), ("encoder", Encode)]
)


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
    error = DecodeError(f"cannot decode a body {what}: {reason}")
    error.__cause__ = exc
    return error


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


class SerializerRegistry:
    """A registry of serializers by name, and of decoders by content type."""

    def __init__(self) -> None:
        self._encoders: dict[str, codec] = {}
        self._decoders: dict[str, Decode] = {}
        self._default: codec | None = None
        self._disabled_content_types: set[str] = set()
        self._has_looked_for_plugins = False
        self.type_to_name: dict[str, str] = {}
        self.name_to_type: dict[str, str] = {}

    def register(
        self,
        name: str,
        encoder: Encode | None,
        decoder: Decode | None,
        content_type: str,
        content_encoding: str = "utf-8",
    ) -> None:
        """Register a serializer, or replace the serializer with the same name.

        Arguments:
            name: the name of the serializer, for ``publish`` and ``accept``.
            encoder: a function that converts a value to text or bytes.  None registers a serializer that
                can only decode.
            decoder: a function that converts a body to a value.  None leaves the body as text or bytes.
            content_type: the MIME type of the encoded body.
            content_encoding: the character set of the encoded body, or ``binary``.
        """
        if encoder is not None:
            self._encoders[name] = codec(content_type, content_encoding, encoder)
        if decoder is not None:
            self._decoders[content_type] = decoder
        self.type_to_name[content_type] = name
        self.name_to_type[name] = content_type

    def unregister(self, name: str) -> None:
        """Remove a serializer.

        Raises:
            SerializerNotInstalled: no serializer of that name is registered.
        """
        content_type = self.name_to_type.pop(name, None)
        if content_type is None:
            raise SerializerNotInstalled(self._unknown(name))
        self._decoders.pop(content_type, None)
        self._encoders.pop(name, None)
        self.type_to_name.pop(content_type, None)

    def enable(self, name: str) -> None:
        """Allow consumers that do not set *accept* to decode with a serializer.

        Arguments:
            name: the name of the serializer, or its content type.

        Raises:
            KeyError: no serializer of that name is registered.
        """
        self._disabled_content_types.discard(self._content_type(name))

    def disable(self, name: str) -> None:
        """Allow only consumers that accept it by name to decode with a serializer.

        Arguments:
            name: the name of the serializer, or its content type.

        Raises:
            KeyError: no serializer of that name is registered.
        """
        self._disabled_content_types.add(self._content_type(name))

    def _content_type(self, name: str) -> str:
        if "/" in name:
            return name
        if name not in self.name_to_type:
            self._look_for_plugins()
        return self.name_to_type[name]

    def _set_default_serializer(self, name: str) -> None:
        """Set the serializer of bodies that are neither text nor bytes."""
        self._default = self._encoder(name)

    def _encoder(self, name: str) -> codec:
        if name not in self._encoders:
            self._look_for_plugins()
        try:
            return self._encoders[name]
        except KeyError:
            raise SerializerNotInstalled(self._unknown(name)) from None

    def _unknown(self, name: object) -> str:
        known = ", ".join(sorted(str(each) for each in self.name_to_type if each is not None))
        return f"unknown serializer {name!r}; known: {known}"

    def _look_for_plugins(self) -> None:
        """Register the serializers of installed packages, once, when a name is unknown."""
        if self._has_looked_for_plugins:
            return
        self._has_looked_for_plugins = True
        # Imported here because that takes 8 ms, and few programs need it.
        from importlib.metadata import entry_points

        for entry_point in entry_points(group=ENTRY_POINTS):
            if entry_point.name in self.name_to_type:
                continue
            try:
                self.register(entry_point.name, *entry_point.load())
            except Exception:
                logger.warning("cannot load serializer %r", entry_point.name, exc_info=True)

    def dumps(self, data: Any, serializer: str | None = None) -> tuple[str, str, Any]:
        """Encode a body.

        Arguments:
            data: the body to encode.
            serializer: the name of a registered serializer, or ``raw``.  None sends text as
                ``text/plain``, bytes as ``application/data``, and encodes any other value with the
                default serializer (JSON).

        Returns:
            The content type, the content encoding and the encoded body.

        Raises:
            SerializerNotInstalled: no serializer of that name is registered.
            EncodeError: the serializer cannot encode the body.
        """
        if serializer:
            if serializer == "raw":
                return raw_encode(data)
            chosen = self._encoders.get(serializer) or self._encoder(serializer)
        elif data.__class__ is dict and self._default is not None:
            chosen = self._default  # nearly all
        elif isinstance(data, str):
            return "text/plain", "utf-8", utf8(data, "text/plain")
        elif isinstance(data, (bytes, bytearray, memoryview)):
            # A copy, since the message may be sent after the caller has changed its buffer.
            return "application/data", "binary", bytes(data)
        elif self._default is None:
            raise SerializerNotInstalled("no default serializer is set")
        else:
            chosen = self._default
        content_type, content_encoding, encode = chosen
        try:
            return content_type, content_encoding, encode(data)
        except (SerializationError, SerializerNotInstalled):
            raise
        except Exception as exc:
            raise encode_error(exc, content_type) from exc

    def loads(
        self,
        data: Any,
        content_type: str | bytes | None,
        content_encoding: str | None,
        accept: Container[str] | None = None,
        force: bool = False,
        _trusted_content: Container[str] = TRUSTED_CONTENT,
    ) -> Any:
        """Decode a body.

        Arguments:
            data: the encoded body: text, bytes or a buffer.
            content_type: the MIME type of the body.  None means ``application/data``.
            content_encoding: the character set of a body that has no decoder.  None means UTF-8.
            accept: the accepted content types.  None accepts all content types that are not disabled.
            force: whether to decode disabled content types as well if *accept* is None.

        Raises:
            ContentDisallowed: the content type is not accepted.
            DecodeError: the body is invalid for its content type.
            SerializerNotInstalled: the package that decodes the content type is not installed.
        """
        if not content_type:
            content_type = "application/data"
        elif type(content_type) is not str:
            content_type = bytes_to_str(content_type)
            if not isinstance(content_type, str):
                raise DecodeError(f"content_type must be text, got {type(content_type).__name__}")
        if accept is not None:
            if content_type not in accept and content_type not in _trusted_content:
                raise self._refusal(content_type, "untrusted")
        elif content_type in self._disabled_content_types and not force:
            raise self._refusal(content_type, "disabled")
        decode = self._decoders.get(content_type)
        if decode is None:
            return self._as_text(data, content_type, content_encoding)
        if not data:
            return data
        try:
            return decode(data)
        except (SerializationError, SerializerNotInstalled):
            raise
        except Exception as exc:
            raise decode_error(exc, f"as {content_type}") from exc

    def _as_text(self, data: Any, content_type: str, content_encoding: str | None) -> Any:
        """Return a body without a decoder: as text, or as it is if its encoding is binary."""
        if content_type not in _PLAIN and not self._has_looked_for_plugins:
            self._look_for_plugins()
            if content_type in self._decoders:
                return self.loads(data, content_type, content_encoding, force=True)
        try:
            encoding = (content_encoding or "utf-8").lower()
            if encoding in SKIP_DECODE or data is None or isinstance(data, str):
                return data
            # Not codecs.decode, which would also run codecs like zlib, whose output has no limit.
            return str(data, charset(encoding) or "an unknown encoding")
        except Exception as exc:
            raise decode_error(exc, "as text") from exc

    def _refusal(self, content_type: str, why: str) -> ContentDisallowed:
        name = self.type_to_name.get(content_type)
        shown = f"{name} ({content_type})" if name else f"{content_type} ({content_type})"
        return ContentDisallowed(
            f"Refusing to deserialize {why} content of type {shown}: name it in accept=[...] "
            f"to allow it"
        )


def _pickle_dumps(value: Any) -> bytes:
    import pickle  # most programs never need it

    return pickle.dumps(value, protocol=pickle_protocol)


#: The registry of serializers of this process.
registry: Final = SerializerRegistry()
dumps = registry.dumps
loads = registry.loads
register = registry.register
unregister = registry.unregister


def register_json() -> None:
    """Register JSON with kombu's typed values (:mod:`greenconn.jsoncodec`)."""
    registry.register("json", json_encode, json_loads, "application/json", "utf-8")


def register_yaml() -> None:
    """Register YAML (PyYAML's safe subset)."""
    registry.register("yaml", yaml_dumps, yaml_loads, "application/x-yaml", "utf-8")


def register_pickle() -> None:
    """Register pickle.

    A publisher can execute arbitrary code in a process that decodes pickle.
    """
    registry.register("pickle", _pickle_dumps, unpickle, "application/x-python-serialize", "binary")


def register_msgpack() -> None:
    """Register MessagePack."""
    registry.register("msgpack", msgpack_dumps, msgpack_loads, "application/x-msgpack", "binary")


_INSECURE: Final = ("pickle", "yaml", "msgpack")


def enable_insecure_serializers(choices: Iterable[str] | None = _INSECURE) -> None:
    """Allow consumers that do not set *accept* to decode with these serializers.

    Arguments:
        choices: the names or content types of the serializers.  Unknown names are ignored.
    """
    for choice in choices or ():
        try:
            registry.enable(choice)
        except KeyError:
            pass


def disable_insecure_serializers(allowed: Iterable[str] | None = ("json",)) -> None:
    """Allow consumers that do not set *accept* to decode with these serializers only.

    Publishing with the other serializers remains possible.

    Arguments:
        allowed: the names or content types of the allowed serializers.

    Raises:
        KeyError: a name is unknown.
    """
    for content_type in registry._decoders:
        registry.disable(content_type)
    for name in allowed or ():
        registry.enable(name)


def prepare_accept_content(
    content_types: Iterable[str] | None, name_to_type: Mapping[str, str] | None = None
) -> set[str] | None:
    """Return the content types of serializers given by name, or None if *content_types* is None.

    Arguments:
        content_types: names of serializers or content types, or a single one of them.
        name_to_type: a mapping of names to content types.  None uses the registry.

    Raises:
        SerializerNotInstalled: a name is unknown.
    """
    if content_types is None:
        return None
    if isinstance(content_types, str):
        content_types = (content_types,)
    resolve = name_to_type.__getitem__ if name_to_type else registry._content_type
    try:
        return {name if "/" in name else resolve(name) for name in content_types}
    except KeyError as exc:
        raise SerializerNotInstalled(registry._unknown(exc.args[0])) from None


register_json()
register_pickle()
register_yaml()
register_msgpack()
registry._set_default_serializer("json")
disable_insecure_serializers()


if not TYPE_CHECKING:  # otherwise a type checker accepts any attribute

    def __getattr__(name: str) -> Any:
        if name == "pickle":  # kombu's module has this name, too
            import pickle

            return pickle
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
