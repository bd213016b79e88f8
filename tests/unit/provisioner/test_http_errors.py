import errno
import json
import traceback

import pytest
from jupyter_server.base.handlers import APIHandler
from tornado.web import HTTPError
from torpor.errors import (
    BackendUnavailable,
    ConfigError,
    LaunchTimeout,
    ProgramNotFound,
    SandboxError,
    from_json,
)
from torpor.http_errors import http_error, shown_by_servers

KINDS = [SandboxError, ConfigError, ProgramNotFound, LaunchTimeout, BackendUnavailable]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_its_own_and_a_servers(kind):
    error = http_error(kind("50% of %s is gone", hint="add %d"))
    assert isinstance(error, kind)
    assert isinstance(error, HTTPError)
    assert error.status_code == kind.http_status
    assert str(error) == "50% of %s is gone (add %d)"
    assert (error.message, error.hint) == ("50% of %s is gone", "add %d")
    assert repr(error) == f"{kind.__name__}('50% of %s is gone')"
    assert error.to_json() == kind("50% of %s is gone", hint="add %d").to_json()
    assert http_error(error) is error


def test_a_percent_sign_is_only_that_wherever_a_server_formats_the_text():
    error = http_error(ConfigError("no %s in 50%"))
    assert json.loads(json.dumps({"message": error.log_message})) == {"message": "no %s in 50%"}
    assert error.log_message % error.args == "no %s in 50%"
    assert error.get_message() == "no %s in 50%"


def test_what_jupyter_server_tells_a_browser():
    class Handler:
        log = type("Log", (), {"warning": staticmethod(lambda *args: None)})
        told = ""

        def set_header(self, *header):
            pass

        def finish(self, text):
            self.told = text

    handler, error = Handler(), http_error(ConfigError("there is no template '%s'"))
    APIHandler.write_error(handler, error.status_code, exc_info=(type(error), error, None))
    assert json.loads(handler.told)["message"] == "there is no template '%s'"


def test_cause_and_traceback_stay():
    def fails():
        raise ConfigError("wrong") from OSError("why")

    with pytest.raises(ConfigError) as caught, shown_by_servers():
        fails()
    error = caught.value
    assert isinstance(error, HTTPError)
    assert isinstance(error.__cause__, OSError)
    assert "fails" in {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    assert "".join(traceback.format_exception(error)).count("ConfigError: wrong") == 1
    with pytest.raises(ValueError, match="other"), shown_by_servers():
        raise ValueError("other")


def test_a_program_that_is_not_there_is_a_file_that_is_not_there():
    error = from_json(ProgramNotFound("no 'R'", hint="install R").to_json())
    assert isinstance(error, ProgramNotFound)
    assert isinstance(error, FileNotFoundError)
    assert error.errno == errno.ENOENT
    assert str(error) == "no 'R' (install R)"
