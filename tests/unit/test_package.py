"""The names of the package."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import greenconn
from tests.interpreter import printed


def run(program: str) -> str:
    """What *program* prints in an interpreter of its own."""
    return printed("-W", "error", "-c", program)


def test_names_are_those_of_their_modules() -> None:
    for name, module in greenconn._MODULES.items():
        assert getattr(greenconn, name) is getattr(import_module(f"greenconn.{module}"), name)
    at_once = {"health", "rpc", "__version__", "VERSION", "version_info", "version_info_t"}
    assert set(greenconn._MODULES) | at_once == set(greenconn.__all__)


def test_the_extra_all_brings_all_that_users_may_want() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    found = re.search(r'^all = \["greenconn\[(.*)\]"\]$', section, re.MULTILINE)
    assert found is not None
    assert set(found[1].split(",")) == extras - {"all", "docs"}


def test_dir_shows_what_is_public() -> None:
    names = {name for name in dir(greenconn) if not name.startswith("__")}
    assert names == {*greenconn.__all__, *greenconn._SUBMODULES} - {"__version__"}
    for name in names:
        assert getattr(greenconn, name) is not None


def test_modules_need_no_import_of_their_own() -> None:
    program = "import greenconn; print(greenconn.exceptions.Unroutable is greenconn.Unroutable)"
    assert run(program).strip() == "True"
    assert run("import greenconn; print(greenconn.testing.__name__)").strip() == "greenconn.testing"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'Conection'"):
        getattr(greenconn, "Conection")  # noqa: B009 - a type checker would see it


def test_importing_loads_nothing() -> None:
    loaded = run(
        "import sys, greenconn; print(*(n for n in ('gevent', 'amqp', 'ssl') if n in sys.modules))"
    )
    assert loaded.strip() == ""


#: What takes long to import, and who needs it.
HEAVY = {
    "bz2": "who compresses",
    "lzma": "who compresses",
    "pickle": "who asks for it",
    "importlib.metadata": "who names a serializer that is not known",
    "email": "importlib.metadata",
    "zipfile": "importlib.metadata",
    "difflib": "who misspelt a name",
    "dataclasses": "who has some",
    "random": "who waits before another attempt",
    "hashlib": "pools",
    "gevent.lock": "who consumes",
    "gevent.queue": "nobody",
    "gevent.socket": "who connects to a name",
    "gevent.threadpool": "who connects to a name",
    "hypothesis": "nobody",
    "kombu": "nobody",
    "redis": "another transport",
    "yaml": "who asks for it",
    "greenconn.cli": "the command line",
    "greenconn.compat": "who asks for it",
    "greenconn.pools": "who asks for it",
    "greenconn.publishing": "who asks for it",
    "greenconn.resource": "pools",
    "greenconn.service": "who asks for it",
    "greenconn.simple": "who asks for it",
    "greenconn.transport.memory": "another transport",
    "greenconn.transport.native_delayed_delivery": "who delays messages",
    "greenconn.transport.virtual": "another transport",
    "greenconn.wire.tls": "who uses TLS",
    "greenconn.worker": "who asks for it",
}


@pytest.mark.parametrize(
    "program",
    [
        "import greenconn.transport.amqp",
        "from greenconn import Connection; Connection('amqp://').transport",
        "from greenconn import Connection, Producer, Consumer, Exchange, Queue",
    ],
)
def test_what_not_everybody_needs_is_imported_when_it_is_needed(program: str) -> None:
    heavy = f"(name for name in {list(HEAVY)} if name in sys.modules)"
    # What the packages below import themselves is not ours to judge.
    loaded = run(
        f"import sys, gevent, amqp; was = {{*{heavy}}}; {program}; print(*{{*{heavy}}} - was)"
    )
    assert loaded.split() == []


def test_an_application_loads_no_test_support_until_it_is_tested() -> None:
    said = run(
        "import sys\n"
        "from greenconn import App\n"
        "app = App('memory://')\n"
        "app.consumer('mail')(print)\n"
        "app.start()\n"
        "print(*({'pytest', 'greenconn.testing'} & {*sys.modules}))\n"
        "assert app.stop(60.0)\n"
        "with app.testing() as test:\n"
        "    print(type(test).__name__)"
    )
    assert said.splitlines() == ["", "MemoryBroker"]


def test_a_connection_and_its_channels_load_producers_and_consumers_when_they_are_asked_for() -> (
    None
):
    said = run(
        "import sys\n"
        "from greenconn import Connection\n"
        "with Connection('memory://') as connection:\n"
        "    channel = connection.channel()\n"
        "    print('greenconn.messaging' in sys.modules)\n"
        "    print(type(channel.Producer()).__name__, type(channel.Consumer([])).__name__)\n"
        "    print(type(connection.Producer()).__name__, type(connection.Consumer([])).__name__)"
    )
    assert said.splitlines() == ["False", "Producer Consumer", "Producer Consumer"]


def test_importing_all_names_starts_nothing_and_patches_nothing() -> None:
    said = run(
        "import threading\n"
        "from greenconn import *\n"
        "from gevent import monkey, Greenlet\n"
        "import gc\n"
        "print(threading.active_count(), monkey.saved, "
        "[o for o in gc.get_objects() if issubclass(type(o), Greenlet)])\n"
    )
    assert said.strip() == "1 {} []"


def test_a_module_is_looked_up_once() -> None:
    program = "import greenconn; greenconn.rpc; print('rpc' in vars(greenconn))"
    assert run(program).strip() == "True"
