"""``python -m greenconn``: the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from greenconn import cli

        return cli.main()
    except KeyboardInterrupt:  # while modules were imported
        sys.stderr.write("greenconn: interrupted\n")
        return 130
    except ImportError as exc:
        if exc.name not in ("click", "rich"):
            raise
        sys.stderr.write(
            f"greenconn: the command line needs {exc.name!r}: pip install 'greenconn[cli]'\n"
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
