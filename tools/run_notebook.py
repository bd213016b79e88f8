"""Execute a notebook with nbclient and print it readably, cell by cell, as it runs.

    python tools/run_notebook.py NOTEBOOK --kernel NAME [--answer TEXT ...] [--out FILE]

nbclient answers no ``input()`` by itself; here every prompt gets the next ``--answer``. Pictures and
the executed notebook go to the folder of ``--out``. Exit code 1 when a cell fails that may not.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Printer:
    """Prints cells as they end. ``folder`` takes the pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = 0

    def source(self, cell: Any, cell_index: int, **_: object) -> None:
        """Print the source of a cell that is about to run."""
        for line in cell.source.splitlines():
            print(f"  | {line}")
        sys.stdout.flush()

    def outputs(self, cell: Any, cell_index: int, **_: object) -> None:
        """Print what a cell gave."""
        for output in _joined(cell.outputs):
            self._output(output)
        print(flush=True)

    def _output(self, output: Any) -> None:
        if output.output_type == "stream":
            print(_as_on_a_terminal(output.text).rstrip("\n"))
        elif output.output_type == "error":
            print(_ANSI.sub("", "\n".join(output.traceback[-1:])))
        else:
            for kind, content in output.data.items():
                if kind == "image/png":
                    self._picture(content)
            if "image/png" not in output.data:
                print(output.data.get("text/plain", f"[{', '.join(output.data)}]"))

    def _picture(self, content: str) -> None:
        self.pictures += 1
        path = self.folder / f"picture-{self.pictures}.png"
        path.write_bytes(base64.b64decode(content))
        print(f"[picture: {path}, {path.stat().st_size / 1024:.0f} KiB]")


class Answers:
    """Gives the kernel's ``input()`` prompts one answer after the other."""

    def __init__(self, client: NotebookClient, answers: list[str]) -> None:
        self._client = client
        self._answers = list(answers)
        self._task: asyncio.Task[None] | None = None

    async def start(self, **_: object) -> None:
        """Allow prompts and answer them until ``stop``."""
        kernel = self._client.kc
        assert kernel is not None, "nbclient has one when the notebook starts"
        kernel.allow_stdin = True
        self._task = asyncio.create_task(self._answer(kernel), name="answers")

    async def stop(self, **_: object) -> None:
        """Stop answering. Twice is fine."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _answer(self, kernel: Any) -> None:
        while True:
            message = await kernel.get_stdin_msg(timeout=None)
            if message["header"]["msg_type"] == "input_request":
                answer = self._answers.pop(0) if self._answers else ""
                print(f"  {message['content']['prompt']}{answer}", flush=True)
                kernel.input(answer)


async def execute(options: argparse.Namespace) -> int:
    """Run the notebook; give the exit code."""
    notebook = nbformat.read(options.notebook, as_version=4)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        kernel_name=options.kernel,
        timeout=options.timeout,
        resources={"metadata": {"path": str(options.notebook.resolve().parent)}},
    )
    answers, printer = Answers(client, options.answer), Printer(options.out.parent)
    client.on_notebook_start = answers.start
    client.on_notebook_complete = answers.stop
    client.on_cell_execute = printer.source
    client.on_cell_executed = printer.outputs
    started = time.monotonic()
    print(f"  executing {options.notebook} with kernel {options.kernel}\n", flush=True)
    try:
        await client.async_execute()
    except CellExecutionError as exc:
        print(_ANSI.sub("", str(exc)), file=sys.stderr)
        return 1
    finally:
        await answers.stop()
        nbformat.write(notebook, options.out)
    took_s = time.monotonic() - started
    print(f"  done in {took_s:.1f} s; the executed notebook is {options.out}")
    return 0


def _joined(outputs: list[Any]) -> list[Any]:
    """Give the outputs with neighbouring pieces of one stream made one, as a terminal shows them."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else output
        if (
            output.output_type == "stream"
            and last is not output
            and last.get("name") == output.name
        ):
            text = last.text + output.text
            joined[-1] = nbformat.v4.new_output("stream", name=output.name, text=text)
        else:
            joined.append(output)
    return joined


def _as_on_a_terminal(text: str) -> str:
    """Give what a terminal would show: a carriage return starts the line anew. Progress bars do."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--answer", action="append", default=[], help="for input(); repeatable")
    parser.add_argument("--out", type=Path, default=Path("build/demo/executed.ipynb"))
    parser.add_argument("--timeout", type=int, default=120, help="seconds per cell")
    return asyncio.run(execute(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
