"""A weather station that publishes a thousand temperatures: ``python station.py``."""

from __future__ import annotations

import random

from measurements import MEASUREMENTS

import greenconn

COUNT = 1000


def main() -> None:
    for number in range(1, COUNT + 1):
        celsius = round(random.uniform(-10, 30), 1)
        greenconn.publish(MEASUREMENTS, {"number": number, "celsius": celsius})
    print(f"published {COUNT} measurements", flush=True)


if __name__ == "__main__":
    main()
