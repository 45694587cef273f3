"""A service that converts currencies: ``greenconn run service --processes 2``."""

from __future__ import annotations

import gevent

import greenconn

RATES = {"USD": 1.09, "JPY": 162.0, "CHF": 0.94}

app = greenconn.App()


@app.rpc("convert", concurrency=50)
def convert(request: dict[str, str]) -> str:
    """Convert euros.  What is raised here is raised in the caller as ``RemoteError``."""
    gevent.sleep(0.05)  # as a database would
    return f"{float(request['euros']) * RATES[request['to']]:.2f}"
