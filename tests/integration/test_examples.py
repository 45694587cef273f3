"""The examples run as their first lines say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.processes import ROOT, run

pytestmark = pytest.mark.programs

EXAMPLES = sorted((ROOT / "examples").glob("*.py"), key=lambda path: path.name)
OWN_TRANSPORT = "own_transport.py"
OWN_STORE = "folder_broker.py"
#: They have brokers of their own.
OWN = {OWN_TRANSPORT, OWN_STORE}


@pytest.mark.parametrize(
    "broker",
    ["amqp", *(pytest.param(name, marks=pytest.mark.full) for name in ("memory", "redis"))],
)
@pytest.mark.parametrize("name", [path.name for path in EXAMPLES if path.name not in OWN])
def test_it_runs(name: str, broker: str, request: pytest.FixtureRequest) -> None:
    arguments = []
    if broker == "amqp":
        arguments.append(request.getfixturevalue("amqp_url"))
    elif broker == "redis":
        # Its own: on a shared one it would say that it gives back what other tests left.
        arguments.append(request.getfixturevalue("redis_with")().url)
    outcome = run(f"examples/{name}", *arguments)
    assert (outcome.errors, outcome.code) == ("", 0), outcome.output
    assert f"{broker}://" in outcome.output


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_says_how_to_run_it(path: object) -> None:
    text = (ROOT / "examples" / str(path)).read_text()
    assert f"python examples/{getattr(path, 'name', path)} [URL]``" in text


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
    text = (ROOT / "examples" / OWN_TRANSPORT).read_text()
    assert original in text
    program = tmp_path / OWN_TRANSPORT
    program.write_text(text.replace(original, line))
    outcome = run(str(program), f"folder://{tmp_path}/letters", env={"PYTHONPATH": str(ROOT)})
    assert (outcome.errors, outcome.code) == ("", 0), outcome.output
    assert "100 letters went through folder:///" in outcome.output
