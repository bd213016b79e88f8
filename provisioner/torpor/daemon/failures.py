"""Why a kernel could not be started, in words a person can act on. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from torpor.daemon.guest_state import GuestState, Phase
from torpor.errors import LaunchError, LaunchTimeout

_TAIL_LINES = 12
_TAIL_CHARS = 1500


def guest_failure(state: GuestState, argv: Sequence[str]) -> LaunchError:
    """Say why the kernel process in its sandbox never answered."""
    program = argv[0].rsplit("/", 1)[-1]
    if state.link_error:
        return LaunchError(f"the link to the sandbox failed: {state.link_error}")
    if state.phase is Phase.EXITED and not state.failure:
        text = f"{program} ended at once"
    else:
        text = f"{program} did not start: {state.failure}"
    if state.exit_code is not None and str(state.exit_code) not in text:
        text += f" (exit code {state.exit_code})"
    return LaunchError(text + _quoted("its last output", state.stderr_tail))


def sandbox_failure(reason: str, guest_stderr: str) -> LaunchError:
    """Say why the sandbox ended before its kernel was ready."""
    return LaunchError(
        f"the sandbox ended before its kernel was ready: {reason}"
        + _quoted("its last output", guest_stderr)
    )


def never_its_turn(kernel_name: str, limit_s: float) -> LaunchTimeout:
    """Say that the start timeout has passed while other kernels were starting."""
    return LaunchTimeout(
        f"kernel {kernel_name!r} was still waiting for its turn after {limit_s:g} s",
        hint="many kernels are starting at once; try again",
    )


def timed_out(kernel_name: str, limit_s: float, *, stderr: str) -> LaunchTimeout:
    """Say that the start timeout has passed, and what the kernel printed meanwhile."""
    text = f"kernel {kernel_name!r} was not ready in {limit_s:g} s"
    return LaunchTimeout(
        text + _quoted("its last output", stderr),
        hint="start_timeout_s of the template is the limit",
    )


def _quoted(title: str, text: str) -> str:
    lines = text.strip()[-_TAIL_CHARS:].splitlines()[-_TAIL_LINES:]
    return f"\n{title}:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
