"""The site as it is built: each link within it leads to a page, and to a place on that page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.interpreter import printed

pytestmark = [pytest.mark.programs, pytest.mark.full]

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what leads somewhere, and what can be led to."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif value and (name, tag) in (("href", "a"), ("href", "link"), ("src", "img")):
                self.links.add(value)


@pytest.mark.timeout(600)
def test_each_link_within_the_site_leads_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    site = tmp_path / "site"
    printed("-m", "sphinx", "-q", "-W", "-b", "html", f"{ROOT}/docs", str(site), timeout=600)
    for path in site.rglob("*.html"):
        # The theme puts one in a red box, and does not warn.
        assert 'class="contents' not in path.read_text(encoding="utf-8"), path.name
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 40
    broken: set[tuple[str, str]] = set()
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = pages.get(target)
            if not target.exists() or (there and anchor and unquote(anchor) not in there.anchors):
                broken.add((path.name, link))
    assert broken == set()
