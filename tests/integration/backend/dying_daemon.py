"""A daemon that starts one sandbox and stops for ever at a step, to be killed there.

python dying_daemon.py FOLDER RUNSC STEP       prints STEP when it is there; "running" after all
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY))

from tests.integration.backend.world import LocalSubject  # noqa: E402


async def main(folder: Path, runsc: Path, step: str) -> None:
    async def stop(reached: str) -> None:
        if reached == step:
            print(step, flush=True)
            await asyncio.Event().wait()

    subject = LocalSubject(folder, runsc)
    backend, spec = replace(subject.backend(), on_step=stop), subject.spec(step)
    await backend.prepare(spec)
    await backend.start(spec)
    await stop(step)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
