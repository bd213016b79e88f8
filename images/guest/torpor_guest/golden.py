"""What the guest of a golden does more: warm the kernel, and later become somebody's.

More requests, served only where boot.json says ``"golden": true``::

    execute {"code", "timeout_s"}         → the content of the execute_reply ("status": "timeout" too)
    request {"msg_type", "content", "timeout_s"} → the content of that reply
    seen    {}                            → {"files": [str], "folders": [str]} that the kernel depends on
    seal    {}                            → {}: last before the checkpoint
    rehearse {}                           → {"reseeded": [str]}: in a clone that waits; its randomness
                                            is its own from then on, and the claim need not see to it
    claim   {"env": {}, "unset": [], "cwd", "workspace": null | {"path", "keep": []},
             "code": str | null, "start": StartParams, "timeout_s"} → {"reseeded": [str]}
                                            and before it the event ``ready``

Error codes besides those of ``rpc``: ``busy``, ``no_kernel``, ``claim`` (it cannot be had; the sandbox
is to be thrown away).
"""

from __future__ import annotations

from torpor_guest.boot import parse_start
from torpor_guest.kernel import Kernel
from torpor_guest.kernel_line import KernelLine
from torpor_guest.probe import Probe
from torpor_guest.silent import Silent, execute_content

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = Callable[[dict[str, Any]], None]
    Method = Callable[[dict[str, Any], Answer], None]

_CLAIM_S = 30.0


class Golden:
    """Serves the requests of the module's text; after a claim it serves none."""

    def __init__(
        self, kernel: Kernel, probe: Probe, silent: Silent, line: KernelLine | None
    ) -> None:
        # Loaded before the checkpoint: in a clone it is there.
        from torpor_guest import places

        self._places = places
        self._kernel = kernel
        self._probe = probe
        self._silent = silent
        self._line = line
        self._claimed = False

    def methods(self) -> dict[str, Method]:
        """Give the handlers by method."""
        return {
            "execute": self._execute,
            "request": self._request,
            "seen": lambda _params, answer: self._ask({"do": "seen"}, answer),
            "seal": self._seal,
            "rehearse": self._rehearse,
            "claim": self._claim,
        }

    def _execute(self, params: dict[str, Any], answer: Answer) -> None:
        content = execute_content(str(params.get("code", "")))
        self._request({**params, "msg_type": "execute_request", "content": content}, answer)

    def _request(self, params: dict[str, Any], answer: Answer) -> None:
        if self._refused(answer):
            return
        if self._silent.busy:
            answer(_error("busy", "another request is on its way"))
            return
        timeout_s = float(params.get("timeout_s") or _CLAIM_S)
        kind, content = str(params.get("msg_type")), params.get("content") or {}
        self._silent.ask(kind, content, timeout_s, lambda reply: answer({"result": reply}))

    def _seal(self, _params: dict[str, Any], answer: Answer) -> None:
        import gc

        if self._line is None:
            answer({"result": {}})
        else:
            self._ask({"do": "seal"}, answer)
        gc.collect()
        gc.freeze()

    def _rehearse(self, _params: dict[str, Any], answer: Answer) -> None:
        if self._refused(answer):
            return
        try:
            self._places.rehearse()
        except OSError as exc:
            answer(_error("claim", f"mounting cannot be rehearsed: {exc}"))
            return
        self._ask({"do": "rehearse"}, answer)

    def _claim(self, params: dict[str, Any], answer: Answer) -> None:
        if self._refused(answer):
            return
        start = parse_start(params.get("start"))
        code, workspace = params.get("code"), params.get("workspace")
        if self._line is None and not code:
            answer(_error("claim", "this kernel has no claim hook"))
            return
        self._claimed = True
        try:
            if workspace is not None:
                self._places.show_workspace(workspace["path"], workspace["keep"])
            self._places.hide_fixed_place()
            self._places.drop_rights()
        except (OSError, KeyError, TypeError) as exc:
            answer(_error("claim", f"the workspace cannot be shown: {exc}"))
            return

        reseeded: list[Any] = []

        def done(body: dict[str, Any]) -> None:
            if not (body.get("ok") is True or body.get("status") == "ok"):
                why = body.get("error") or body.get("evalue") or body.get("status")
                answer(_error("claim", f"the kernel did not take its new identity: {why}"))
                return
            self._kernel.claimed(start)
            answer({"result": {"reseeded": reseeded}})

        def run_code(body: dict[str, Any]) -> None:
            reseeded.extend(body.get("reseeded") or ())
            if body.get("ok") is not True or not code:
                done(body)
                return
            timeout_s = float(params.get("timeout_s") or _CLAIM_S)
            self._silent.ask("execute_request", execute_content(str(code)), timeout_s, done)

        if self._line is None:
            run_code({"ok": True})
        else:
            wanted = {name: params.get(name) for name in ("env", "unset", "cwd")}
            self._line.ask({"do": "claim", "last": True, **wanted}, run_code)

    def _ask(self, request: dict[str, Any], answer: Answer) -> None:
        if self._refused(answer):
            return
        if self._line is None:
            answer({"result": {"files": [], "folders": []}})
            return

        def told(body: dict[str, Any]) -> None:
            ok = body.pop("ok", False)
            answer({"result": body} if ok else _error("claim", str(body.get("error"))))

        self._line.ask(request, told)

    def _refused(self, answer: Answer) -> bool:
        if self._claimed:
            answer(_error("bad_request", "this sandbox is somebody's already"))
        elif self._kernel.state != "ready":
            answer(_error("no_kernel", f"the kernel is {self._kernel.state}"))
        else:
            return False
        return True


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
