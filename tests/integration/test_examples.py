"""The examples run as their first lines say."""

from __future__ import annotations

import pytest

from tests.integration.processes import ROOT, run

EXAMPLES = sorted((ROOT / "examples").glob("*.py"), key=lambda path: path.name)


@pytest.mark.parametrize("broker", ["memory", "amqp"])
@pytest.mark.parametrize("name", [path.name for path in EXAMPLES])
def test_it_runs(name: str, broker: str, request: pytest.FixtureRequest) -> None:
    arguments = [] if broker == "memory" else [request.getfixturevalue("amqp_url")]
    outcome = run(f"examples/{name}", *arguments)
    assert outcome.errors == ""
    assert outcome.code == 0
    assert f"{broker}://" in outcome.output


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_says_how_to_run_it(path: object) -> None:
    text = (ROOT / "examples" / str(path)).read_text()
    assert f"python examples/{getattr(path, 'name', path)} [URL]``" in text
