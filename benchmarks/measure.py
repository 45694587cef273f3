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

from benchmarks.works import OurWorks, Works

#: Messages before the measurement, so that caches and imports are warm.
WARM_UP = 2000


def main() -> None:
    """Measure what the command line names."""
    library, work, count, url = sys.argv[1:5]
    kind = OurWorks if library == "greenconn" else Works
    function = getattr(kind(importlib.import_module(library), url), work)
    function(WARM_UP)
    print(json.dumps(asdict(function(int(count)))))


if __name__ == "__main__":
    main()
