"""The folder of examples: each is a project with a README, and those with one program run.

The others have a file of tests each.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.processes import ROOT, run
from tests.integration.projects import EXAMPLES, command_of

pytestmark = [pytest.mark.programs, pytest.mark.halved]

NAMES = sorted(path.name for path in EXAMPLES.iterdir() if any(path.glob("*.*")))
#: Those with one program, which are tested here.
SMALL = {"own_store", "own_transport", "shared_pool"}
#: Tested with the other tests of a cluster.
CLUSTER = "rabbitmq_cluster"
OWN_TRANSPORT = "own_transport/own_transport.py"
OWN_STORE = "own_store/folder_broker.py"
_PRIVATE = re.compile(r"\bgreenconn[\w.]*\._|import _")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_project(name: str) -> None:
    folder = EXAMPLES / name
    assert (folder / "requirements.txt").exists()
    assert command_of(name)
    assert f"<../examples/{name}/README.rst>" in (ROOT / "docs" / "recipes.rst").read_text()
    for path in folder.rglob("*.py"):
        assert not _PRIVATE.search(path.read_text()), path
    if name not in SMALL | {CLUSTER}:
        assert Path(__file__).with_name(f"test_example_{name}.py").exists()


@pytest.mark.parametrize(
    "broker",
    ["amqp", *(pytest.param(name, marks=pytest.mark.full) for name in ("memory", "redis"))],
)
def test_a_shared_pool(broker: str, request: pytest.FixtureRequest) -> None:
    arguments = []
    if broker == "amqp":
        arguments.append(request.getfixturevalue("amqp_url"))
    elif broker == "redis":
        # Its own: on a shared one it would say that it gives back what other tests left.
        arguments.append(request.getfixturevalue("redis_with")().url)
    outcome = run("examples/shared_pool/shared_pool.py", *arguments)
    assert (outcome.errors, outcome.code) == ("", 0), outcome.output
    assert f"10000 messages over 4 connections of {broker}://" in outcome.output


def test_a_store_of_ones_own(tmp_path: Path) -> None:
    outcome = run(f"examples/{OWN_STORE}", f"files://{tmp_path}/letters")
    assert (outcome.errors, outcome.code) == ("", 0)
    assert "100 letters went through files:///" in outcome.output


@pytest.mark.parametrize(
    "line",
    [
        "from greenconn.transport import TRANSPORT_ALIASES, virtual",
        # Code for kombu: with ours in its place, and with kombu's own classes, which are hosted.
        "from greenconn.compat import install_as_kombu; install_as_kombu()\n"
        "from kombu.transport import TRANSPORT_ALIASES, virtual",
        "from kombu.transport import virtual; from greenconn.transport import TRANSPORT_ALIASES",
    ],
    ids=["ours", "installed", "hosted"],
)
def test_a_transport_of_ones_own(line: str, tmp_path: Path) -> None:
    original = "from greenconn.transport import TRANSPORT_ALIASES, virtual"
    text = (EXAMPLES / OWN_TRANSPORT).read_text()
    assert original in text
    program = tmp_path / "own_transport.py"
    program.write_text(text.replace(original, line))
    outcome = run(str(program), f"folder://{tmp_path}/letters", env={"PYTHONPATH": str(ROOT)})
    assert (outcome.errors, outcome.code) == ("", 0), outcome.output
    assert "100 letters went through folder:///" in outcome.output
