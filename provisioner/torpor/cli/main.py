"""Entry point of ``torpor``. What a command needs is imported when that command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130
TERMINATED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code: 0 done, 1 failed, 2 wrong usage, 130 and 143 ended
    by SIGINT and SIGTERM."""
    from torpor.cli.root import TorporCommand

    # As an exception, so that whatever is under way cleans up behind itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        code = _run(TorporCommand(), list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`torpor logs | head`) has left; Python must not flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(command: object, argv: list[str]) -> int:
    from torpor.cli.command import Command

    assert isinstance(command, Command)
    command.initialize(argv)
    return command.execute()


if __name__ == "__main__":
    sys.exit(main())
