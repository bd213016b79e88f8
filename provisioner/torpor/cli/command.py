"""What all commands share: Jupyter's habits for flags and configuration, ``--json``, exit codes."""

from __future__ import annotations

import json
import logging
import re
import sys
import textwrap
from collections.abc import Generator
from inspect import cleandoc
from pathlib import Path
from typing import Any, ClassVar

from jupyter_core.application import JupyterApp
from traitlets import Bool, Unicode
from traitlets.config.loader import ConfigFileNotFound, FileConfigLoader

from torpor._version import __version__
from torpor.config import user_paths
from torpor.config_problem import config_problem
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
_COLUMNS = 80


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

    _problem: tuple[str, Exception] | None = None
    """A configuration file that cannot be loaded, and why."""

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

    @property
    def shows_progress(self) -> bool:
        """Whether somebody watches: a person at a terminal, not a program that wants JSON."""
        return not self.json and sys.stderr.isatty()

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Take over what the files set for commands. What is wrong with one is told by ``execute``:
        many commands do not need it.
        """
        folder, name = self.paths.config, self.config_file_name
        if self.config_file:
            folder, name = Path(self.config_file).parent, Path(self.config_file).stem
        for stem in ("jupyter_config", name):
            self._load(self.python_config_loader_class(f"{stem}.py", path=str(folder)))
            self._load(self.json_config_loader_class(f"{stem}.json", path=str(folder)))

    def _load(self, loader: FileConfigLoader) -> None:
        try:
            self.update_config(loader.load_config())
        except ConfigFileNotFound:
            return
        except Exception as exc:  # the file is a program: it can raise anything
            self.log.debug("loading %s", loader.full_filename, exc_info=True)
            self._problem = self._problem or (loader.full_filename, exc)

    def execute(self) -> int:
        """Run the chosen command and give the exit code; errors become one readable line."""
        if isinstance(self.subapp, Command):
            return self.subapp.execute()
        if self.subcommand:
            self.start()  # `torpor-NAME` on PATH: replaces this process
        if len(self.extra_args) > self.max_positionals:
            return self.usage_error(f"unexpected argument {self.extra_args[-1]!r}")
        problem = config_problem(*self._problem) if self._problem else None
        try:
            code = self.run()
        except SandboxError as exc:
            if problem and self._problem and self._problem[0] in exc.message:
                exc, problem = problem, None  # the same, and where
            self.show_error(exc)
            code = 1
        if problem:
            self.say_error(problem)
        return code

    def run(self) -> int:
        """Do the work and give the exit code. A command that only groups others lists them."""
        self.print_help()
        return USAGE_ERROR

    def emit_description(self) -> Generator[str, None, None]:
        """Give the description in paragraphs; how a command is written keeps its lines."""
        for paragraph in cleandoc(self.description).split("\n\n"):
            written = paragraph.startswith("torpor ")
            yield paragraph if written else _filled(paragraph)
            yield ""

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
        self.say_error(error)

    def say_error(self, error: SandboxError) -> None:
        """Print an error on standard error only: of one of several, whose document tells of all."""
        print(f"{self.name}: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  what to do: {error.hint}", file=sys.stderr)


def _filled(paragraph: str) -> str:
    """Give it in lines that end between words, but not between those of a command. Pure."""
    whole = re.sub(
        "`[^`]*`", lambda found: "\xa0".join(found.group().split()), " ".join(paragraph.split())
    )
    return textwrap.fill(whole, _COLUMNS).replace("\xa0", " ")


def progress(line: str) -> None:
    """Print a line of progress, on standard error so that it never mixes with the result."""
    print(f"  {line}", file=sys.stderr, flush=True)
