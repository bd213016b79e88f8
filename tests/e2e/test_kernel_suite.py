"""The conformance suite of jupyter_kernel_test against the sandboxed Python kernel: its tests, unmodified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupyter_kernel_test as jkt
import pytest
from jupyter_kernel_test.msgspec_v5 import validate_message

from tests.home import KERNEL

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True, scope="module")
def _home(torpor_env: Path) -> None:
    """The suite starts its kernel in setUpClass, so the home has to be there before."""


class TestSandboxedPython(jkt.KernelTests):
    kernel_name = KERNEL
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [  # noqa: RUF012
        {"text": "zi", "matches": {"zip"}},
    ]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('x')"
    code_execute_result = [{"code": "1+2+3", "result": "6"}]  # noqa: RUF012
    code_display_data = [  # noqa: RUF012
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>t</b>'))",
            "mime": "text/html",
        },
        {
            "code": "from IPython.display import Math, display; display(Math('x'))",
            "mime": "text/latex",
        },
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    def execute_helper(
        self,
        code: str,
        timeout: int = jkt.TIMEOUT,
        silent: bool = False,
        store_history: bool = True,
        stop_on_error: bool = True,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Do what upstream's does, which gives up when a machine stands still for 0.1 s.

        What belongs to another request is passed over: to get rid of that, too, upstream waits only 0.1 s.
        """
        msg_id = self.kc.execute(
            code=code, silent=silent, store_history=store_history, stop_on_error=stop_on_error
        )
        reply = self.get_non_kernel_info_reply(timeout=timeout)
        assert reply is not None
        validate_message(reply, "execute_reply", msg_id)
        busy = self._published(msg_id)
        validate_message(busy, "status", msg_id)
        assert busy["content"]["execution_state"] == "busy"
        output = []
        while True:
            message = self._published(msg_id)
            validate_message(message, message["msg_type"], msg_id)
            if message["msg_type"] == "status":
                assert message["content"]["execution_state"] == "idle"
                return reply, output
            if message["msg_type"] == "execute_input":
                assert message["content"]["code"] == code
                continue
            output.append(message)

    def _published(self, msg_id: str) -> dict[str, Any]:
        """Give the next message on iopub that belongs to a request."""
        while True:
            message = self.kc.get_iopub_msg(timeout=jkt.TIMEOUT)
            if message["parent_header"].get("msg_id") == msg_id:
                return dict(message)
