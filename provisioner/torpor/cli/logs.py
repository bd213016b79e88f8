"""``torpor logs``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from inspect import cleandoc
from typing import Any

from traitlets import Bool, Int, Unicode

from torpor.cli.command import ALIASES, FLAGS, Command
from torpor.cli.log_lines import Line, Tail, last_lines

_POLL_S = 0.3


class LogsCommand(Command):
    name = "torpor logs"
    description = """Show what the daemon and the bridge logged, oldest first.

    Logs hold no keys, no environments and nothing that a kernel printed. With --json each line is
    the JSON object as it was logged."""
    examples = cleandoc("""
    torpor logs
    torpor logs --follow --kernel 5e1f
    """)
    flags: dict[str, Any] = {  # noqa: RUF012
        **FLAGS,
        "follow": ({"LogsCommand": {"follow": True}}, "Go on showing new lines until Ctrl-C."),
    }
    aliases: dict[str, Any] = {  # noqa: RUF012
        **ALIASES,
        "kernel": "LogsCommand.kernel",
        "lines": "LogsCommand.lines",
        "n": "LogsCommand.lines",
    }

    follow = Bool(
        False, help="Go on showing new lines until Ctrl-C; off, because scripts want an end."
    ).tag(config=True)
    kernel = Unicode("", help="Only lines about the kernel whose id starts so; empty: all.").tag(
        config=True
    )
    lines = Int(200, min=0, help="How many of the last lines to show: a few screens; 0: all.").tag(
        config=True
    )

    def run(self) -> int:
        sources = {"torpord": self.paths.log, "bridge": self.paths.bridge_log}
        with ExitStack() as stack:
            tails = [stack.enter_context(closing(Tail(*source))) for source in sources.items()]
            self._show(tails)
        return 0

    def _show(self, tails: list[Tail]) -> None:
        seen = last_lines(tails, kernel=self.kernel, count=self.lines)
        for line in seen:
            self._print(line)
        if not seen and not self.follow:
            print("nothing was logged", file=sys.stderr)
        if self.follow:
            for line in self._new_lines(tails):
                self._print(line)

    def _new_lines(self, tails: list[Tail]) -> Iterator[Line]:
        while True:
            new = [line for tail in tails for line in tail.read() if line.is_about(self.kernel)]
            yield from sorted(new, key=lambda line: line.at)
            sys.stdout.flush()
            time.sleep(_POLL_S)

    def _print(self, line: Line) -> None:
        print(json.dumps(line.fields) if self.json else line.text())
