"""Stand-ins for other packages, so that code that cannot be edited imports greenconn."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

from greenconn._version import version_info_t
from greenconn.checks import tolerate_keywords

__all__ = ["ImportAlias", "install_as_carrot", "install_as_kombu"]

#: The version of kombu whose API ours is.
KOMBU_VERSION: Final = version_info_t(5, 7, 0)


class ImportAlias(MetaPathFinder, Loader):
    """Imports the modules of *package* for those of the same paths below *name*.

    They are the same objects, not copies: a class is the same by either path.  Only the package
    itself is a module of its own, so that it may say another version.

    Arguments:
        name: of the package that is stood in for.
        package: of ours.
        attributes: of the package itself, before ours.
        is_completed: import modules that *package* has not from the files of *name*, where that is
            installed; what they import of *name* is ours.
    """

    def __init__(
        self, name: str, package: str, attributes: dict[str, Any], *, is_completed: bool = False
    ) -> None:
        self.name = name
        self.package = package
        self._attributes = attributes
        self._is_completed = is_completed

    def install(self) -> None:
        """Begin to stand in.  Again: nothing happens.

        Raises:
            RuntimeError: the package was imported already, so objects of both would meet.
        """
        if any(_is_same(finder, self) for finder in sys.meta_path):
            return
        if self.name in sys.modules:
            raise RuntimeError(
                f"{self.name} is already imported (from "
                f"{getattr(sys.modules[self.name], '__file__', None)}): call install_as_{self.name}() "
                f"before anything imports {self.name}, e.g. in the first lines of the program"
            )
        sys.meta_path.insert(0, self)

    # MetaPathFinder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find our counterpart of a module of theirs, or their own file where we have none."""
        if fullname == self.name:
            return ModuleSpec(fullname, self, is_package=True)
        if not fullname.startswith(self.name + "."):
            return None
        if _is_there(self._ours(fullname)):
            return ModuleSpec(fullname, self)
        spec = self._their_spec(fullname) if self._is_completed else None
        if spec is None:
            raise ModuleNotFoundError(
                f"{self.package}, which replaces {self.name} here, has no module for {fullname}"
                + (f", and {self.name} is not installed" * self._is_completed),
                name=fullname,
            )
        return spec

    # Loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import ours."""
        if spec.name == self.name:
            return _Package(self.name, self.package, self._attributes)
        module = importlib.import_module(self._ours(spec.name))
        # What the import system is about to write over; exec_module puts it back.
        spec.loader_state = (module.__spec__, module.__loader__, module.__package__)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: ours has been executed."""
        spec = module.__spec__
        if spec is not None and spec.loader_state is not None:
            module.__spec__, module.__loader__, module.__package__ = spec.loader_state
        # Modules that ours has imported have their place, even where the package has a function of
        # the same name (utils.uuid): importing them anew would put the module in its stead.
        for path, loaded in list(sys.modules.items()):
            if path.startswith(self.package + "."):
                sys.modules.setdefault(self.name + path.removeprefix(self.package), loaded)

    def _ours(self, fullname: str) -> str:
        return self.package + fullname.removeprefix(self.name)

    def _their_spec(self, fullname: str) -> ModuleSpec | None:
        # The path finder alone: an import hook may ask all finders itself, this one included.
        package = PathFinder.find_spec(self.name)
        if package is None or package.submodule_search_locations is None:
            return None
        folders = fullname.split(".")[1:-1]
        path = [os.path.join(each, *folders) for each in package.submodule_search_locations]
        return PathFinder.find_spec(fullname, path)


class _Package(ModuleType):
    """The package itself: the given names, and else those of ours."""

    def __init__(self, name: str, package: str, attributes: dict[str, Any]) -> None:
        ours = importlib.import_module(package)
        super().__init__(name, ours.__doc__)
        self.__dict__.update(attributes, __all__=ours.__all__)
        self.__dict__["_ours"] = ours

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._ours, name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *dir(self._ours)})


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in is not there
        return False


def _is_same(finder: object, other: ImportAlias) -> bool:
    return isinstance(finder, ImportAlias) and (finder.name, finder.package) == (
        other.name,
        other.package,
    )


def install_as_kombu() -> None:
    """Let ``import kombu`` and imports of its modules give greenconn's in this process.

    For programs and libraries that cannot be edited; to be called before any of them is imported.
    ``kombu.VERSION`` says which kombu's API it is.  Modules that greenconn has not
    (``kombu.asynchronous``, kombu's further transports) are kombu's own, where it is installed.  From
    now on unknown keywords of kombu's classes, which kombu ignores, are logged once each instead of
    refused.  A second call does nothing.

    Raises:
        RuntimeError: kombu is imported already.

    Example::

        from greenconn.compat import install_as_kombu

        install_as_kombu()

        import legacy_program
    """
    version = KOMBU_VERSION
    text = f"{version.major}.{version.minor}.{version.micro}"
    attributes = {"VERSION": version, "version_info": version, "__version__": text}
    ImportAlias("kombu", "greenconn", attributes, is_completed=True).install()
    tolerate_keywords()


def install_as_carrot() -> None:
    """Let ``import carrot`` and imports of its modules give :mod:`greenconn.compat.carrot`.

    For programs that cannot be edited; to be called before any of them is imported.  Unknown keywords
    are logged once each instead of refused from now on.  A second call does nothing.

    Raises:
        RuntimeError: carrot is imported already.
    """
    ours = importlib.import_module("greenconn.compat.carrot")
    attributes = {"VERSION": ours.VERSION, "__version__": ours.__version__}
    ImportAlias("carrot", ours.__name__, attributes).install()
    tolerate_keywords()
