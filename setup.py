"""Build step: the description of the package is README.rst with absolute links.

README.rst links to files beside it, which works in the repository.  A package page shows the README
alone, so there a page of the documentation is linked on the site, and any other file in the source of
this version.  Both addresses stand in ``[project.urls]`` of pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent
#: A file beside the README, as the target of a link or as an image.
LINK = re.compile(r"(?<=<)[^<>\s:]+(?=>`_)|(?<=^\.\. image:: )[^\s:]+$", re.MULTILINE)


def addresses(project: str, version: str) -> tuple[str, str]:
    """Return the addresses of the site and of the source of *version*, from pyproject.toml's text."""
    site, source = (
        re.findall(rf'^{name} = "(.+?)/?"$', project, re.MULTILINE)[0]
        for name in ("Documentation", "Source")
    )
    return site, f"{source}/blob/v{version}"


def described(readme: str, project: str, version: str) -> str:
    """Return *readme* with absolute links.

    Arguments:
        readme: the text of README.rst.
        project: the text of pyproject.toml.
        version: the version of the package, whose tag the links to files name.
    """
    site, source = addresses(project, version)

    def absolute(found: re.Match[str]) -> str:
        path = found[0]
        if page := re.fullmatch(r"docs/(.+)\.rst", path):
            return f"{site}/{page[1]}.html"
        if file := re.fullmatch(r"docs/static/(.+)", path):
            return f"{site}/_static/{file[1]}"
        return f"{source}/{path}"

    return LINK.sub(absolute, readme)


if __name__ == "__main__":
    from setuptools import setup  # where packages are built; the tests only need the above

    readme, project, module = (
        (ROOT / each).read_text("utf-8")
        for each in ("README.rst", "pyproject.toml", "greenconn/_version.py")
    )
    [version] = re.findall(r'^__version__ = "(.+)"$', module, re.MULTILINE)
    setup(
        long_description=described(readme, project, version),
        long_description_content_type="text/x-rst",
    )
