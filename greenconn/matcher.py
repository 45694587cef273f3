"""Matching of texts by glob, regular expression or other registered rules (kombu.matcher)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from importlib.metadata import entry_points
from re import match as rematch
from typing import Any, ClassVar

from greenconn.encoding import bytes_to_str

__all__ = [
    "MatcherNotInstalled",
    "MatcherRegistry",
    "match",
    "register",
    "register_glob",
    "register_pcre",
    "registry",
    "unregister",
]

Matcher = Callable[..., Any]

#: Packages offer matchers of their own in this group of entry points, as they do to kombu.
ENTRY_POINTS = "kombu.matchers"


class MatcherNotInstalled(Exception):
    """No matcher has this name."""


class MatcherRegistry:
    """The rules by their names."""

    MatcherNotInstalled = MatcherNotInstalled
    #: Those that are called as ``matcher(pattern, data)``; the others as ``matcher(data, pattern)``.
    matcher_pattern_first: ClassVar[list[str]] = ["pcre"]

    def __init__(self) -> None:
        self._matchers: dict[str, Matcher] = {}
        #: The name that None means.
        self._default = "glob"

    def register(self, name: str, matcher: Matcher) -> None:
        """Add a rule, or replace it."""
        self._matchers[name] = matcher

    def unregister(self, name: str) -> None:
        """Remove a rule.

        Raises:
            MatcherNotInstalled: there is none of this name.
        """
        self._named(name)
        del self._matchers[name]

    def match(
        self,
        data: bytes | str,
        pattern: bytes | str,
        matcher: str | None = None,
        matcher_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return whether *data* matches *pattern*: what the matcher returns.

        Arguments:
            matcher: the name of the rule: "glob" (shell patterns; None), or "pcre" (regular expressions
                that match from the beginning).
            matcher_kwargs: further arguments of the matcher.

        Raises:
            MatcherNotInstalled: there is no such rule.
        """
        name = matcher or self._default
        function = self._named(name)
        texts = [bytes_to_str(data), bytes_to_str(pattern)]
        if name in self.matcher_pattern_first:
            texts.reverse()
        return function(*texts, **(matcher_kwargs or {}))

    # kombu's names; its match() does not look at them.

    @property
    def _default_matcher(self) -> Matcher:
        return self._named(self._default)

    def _set_default_matcher(self, name: str) -> None:
        self._named(name)
        self._default = name

    def _named(self, name: str) -> Matcher:
        try:
            return self._matchers[name]
        except KeyError:
            known = ", ".join(sorted(self._matchers))
            raise self.MatcherNotInstalled(
                f"no matcher is installed for {name!r}: register it, or use one of {known}"
            ) from None


registry = MatcherRegistry()
match = registry.match
register = registry.register
unregister = registry.unregister


def register_glob() -> None:
    """Register shell patterns (``fnmatch``) as "glob"."""
    registry.register("glob", fnmatch)


def register_pcre() -> None:
    """Register regular expressions (``re.match``) as "pcre"."""
    registry.register("pcre", rematch)


register_glob()
register_pcre()
for _point in entry_points(group=ENTRY_POINTS):
    _loaded = _point.load()  # the matcher, or as kombu wants it a tuple of it
    registry.register(_point.name, _loaded if callable(_loaded) else _loaded[0])
