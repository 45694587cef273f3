"""A client of the service: ``python client.py``.  Twenty calls at a time share one connection."""

from __future__ import annotations

import os
from time import monotonic

import gevent
from gevent.pool import Pool

from greenconn import rpc
from greenconn.exceptions import OperationalError, RemoteError

#: Seconds to wait for one reply, and for a service that is being restarted.
REPLY_TIMEOUT = 10
PATIENCE = 30
AMOUNTS = range(1, int(os.environ.get("CALLS", "20")) + 1)


def convert(euros: int, currency: str) -> str:
    """Ask the service.

    When a connection or a server process is lost, the call may have been executed or not.  This one may
    safely be executed twice, so it is repeated.
    """
    end = monotonic() + PATIENCE
    while True:
        try:
            # The service drops requests whose caller no longer waits.
            request = {"euros": str(euros), "to": currency}
            reply: str = rpc.call("convert", request, timeout=REPLY_TIMEOUT, expires=REPLY_TIMEOUT)
            return reply
        except RemoteError:
            raise  # the service has replied: with an error
        except OperationalError:
            if monotonic() > end:
                raise
            gevent.sleep(0.2)


def show(euros: int) -> None:
    print(f"{euros} EUR = {convert(euros, 'USD')} USD", flush=True)


def main() -> None:
    pool = Pool(20)
    for euros in AMOUNTS:
        pool.spawn(show, euros)
    pool.join(raise_error=True)
    try:
        convert(1, "XXX")
    except RemoteError as exc:
        print(f"the service refused: {exc}")


if __name__ == "__main__":
    main()
