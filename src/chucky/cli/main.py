"""Where the command ``chucky`` begins: every way it can end without a traceback."""

from __future__ import annotations

import os
import sys
import traceback


def main() -> None:
    """Run the command line and exit the process.

    Exit codes: 0 done, 1 failed (one sentence on standard error says why), 2 wrong usage, 130
    interrupted.
    """
    try:
        from chucky.cli.app import app
    except ModuleNotFoundError as error:
        _exit_for_missing(error)
    try:
        app(prog_name="chucky")
    except Exception as error:  # the outermost boundary: a fault of ours is one line as well
        if os.environ.get("CHUCKY_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        sys.stderr.write(
            f"Error: {type(error).__name__}: {error} (this is a fault in chucky; "
            f"CHUCKY_LOG_LEVEL=debug shows where)\n"
        )
        sys.exit(1)


def _exit_for_missing(error: ModuleNotFoundError) -> None:
    if (error.name or "").startswith("chucky"):
        raise error
    sys.stderr.write(
        f"Error: The command chucky needs the package {error.name!r}, which comes with the server "
        f"part: run `pip install '.[server]'` in a checkout of chucky.\n"
    )
    sys.exit(1)


if __name__ == "__main__":
    main()
