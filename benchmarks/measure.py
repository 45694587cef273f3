"""One measurement in a process of its own: ``python -m benchmarks.measure LIBRARY WORK COUNT URL``.

Prints CPU and wall-clock seconds as JSON.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "kombu":
    # As kombu's users run it; greenconn is measured as it is, unpatched.
    from gevent import monkey

    monkey.patch_all()

import importlib
import json
from dataclasses import asdict


def main() -> None:
    """Measure what the command line names."""
    library, work, count, url = sys.argv[1:5]
    works = importlib.import_module(f"benchmarks.works_{library}").WORKS
    works[work](url, min(2000, int(count)))  # caches and connections are warm after this
    print(json.dumps(asdict(works[work](url, int(count)))))


if __name__ == "__main__":
    main()
