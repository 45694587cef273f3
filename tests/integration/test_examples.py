"""The examples run as their first lines say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.processes import ROOT, run

pytestmark = pytest.mark.programs

EXAMPLES = sorted((ROOT / "examples").glob("*.py"), key=lambda path: path.name)
#: It has a broker of its own.
OWN_TRANSPORT = "own_transport.py"


@pytest.mark.parametrize("broker", ["memory", "amqp", "redis"])
@pytest.mark.parametrize("name", [path.name for path in EXAMPLES if path.name != OWN_TRANSPORT])
def test_it_runs(name: str, broker: str, request: pytest.FixtureRequest) -> None:
    arguments = [] if broker == "memory" else [request.getfixturevalue(f"{broker}_url")]
    outcome = run(f"examples/{name}", *arguments)
    assert outcome.errors == ""
    assert outcome.code == 0
    assert f"{broker}://" in outcome.output


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_says_how_to_run_it(path: object) -> None:
    text = (ROOT / "examples" / str(path)).read_text()
    assert f"python examples/{getattr(path, 'name', path)} [URL]``" in text


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
    assert outcome.errors == ""
    assert outcome.code == 0
    assert "100 letters went through folder:///" in outcome.output
