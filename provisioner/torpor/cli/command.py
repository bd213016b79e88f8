"""What all commands share: Jupyter's habits for flags and configuration, ``--json``, exit codes."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, ClassVar

from jupyter_core.application import JupyterApp
from traitlets import Bool, Unicode

from torpor._version import __version__
from torpor.config import user_paths
from torpor.errors import SandboxError
from torpor.paths import Paths

FLAGS: dict[str, Any] = {
    "json": ({"Command": {"json": True}}, "Print one JSON document instead of text."),
    "debug": ({"Application": {"log_level": logging.DEBUG}}, "Log everything."),
}
ALIASES: dict[str, Any] = {
    "log-level": "Application.log_level",
    "config": "JupyterApp.config_file",
}
USAGE_ERROR = 2


class Command(JupyterApp):
    """One command. Subclasses set ``name`` and ``description`` and implement ``run``."""

    version = __version__
    flags = FLAGS
    aliases = ALIASES
    max_positionals: ClassVar[int] = 0

    json = Bool(False, help="Print one JSON document instead of text, for programs.").tag(
        config=True
    )

    config_file_name = Unicode("torpor_config")

    def _log_level_default(self) -> int:
        return logging.WARNING

    @property
    def paths(self) -> Paths:
        return user_paths()

    @property
    def config_file_paths(self) -> list[str]:
        """Torpor's own configuration folder; never the current folder, whose files may be anybody's."""
        return [str(self.paths.config)]

    def migrate_config(self) -> None:
        """Do nothing: Jupyter would carry over IPython 3's files here."""

    def execute(self) -> int:
        """Run the chosen command and give the exit code; errors become one readable line."""
        if isinstance(self.subapp, Command):
            return self.subapp.execute()
        if self.subcommand:
            self.start()  # `torpor-NAME` on PATH: replaces this process
        try:
            if len(self.extra_args) > self.max_positionals:
                return self.usage_error(f"unexpected argument {self.extra_args[-1]!r}")
            return self.run()
        except SandboxError as exc:
            self.show_error(exc)
            return 1

    def run(self) -> int:
        """Do the work and give the exit code. A command that only groups others lists them."""
        self.print_help()
        return USAGE_ERROR

    def usage_error(self, message: str) -> int:
        """Say what is wrong with the command line and give the exit code."""
        print(f"{self.name}: {message}; see `{self.name} --help`", file=sys.stderr)
        return USAGE_ERROR

    def show(self, document: Any, text: str) -> None:
        """Print ``document`` as JSON where that was asked for, else ``text``."""
        print(json.dumps(document, indent=2) if self.json else text)

    def show_error(self, error: SandboxError) -> None:
        """Print an error on standard error and, as JSON, where that was asked for, on standard output."""
        if self.json:
            print(json.dumps(error.to_json(), indent=2))
        print(f"{self.name}: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  what to do: {error.hint}", file=sys.stderr)


def progress(line: str) -> None:
    """Print a line of progress, on standard error so that it never mixes with the result."""
    print(f"  {line}", file=sys.stderr, flush=True)
