"""Parsing a launch request: what is wrong is named."""

import pytest
from torpor.api import CHANNELS, LaunchRequest, parse_launch_request
from torpor.errors import ConfigError

GOOD = {
    "kernel_id": "5e1f-a",
    "template": None,
    "kernel_name": "python3",
    "argv": ["python", "-f", "{connection_file}"],
    "env": {"A": "b"},
    "cwd": "/w",
    "workspace": "/w",
    "client": {
        "transport": "tcp",
        "ip": "127.0.0.1",
        "ports": dict.fromkeys(CHANNELS, 0),
        "key": "secret-key",
        "signature_scheme": "hmac-sha256",
        "curve_publickey": None,
        "curve_secretkey": None,
    },
    "lease": True,
    "start_timeout_s": None,
    "env_allow": None,
}


def with_client(**changes):
    return {**GOOD, "client": {**GOOD["client"], **changes}}


def test_a_request_survives_the_wire():
    request = parse_launch_request(GOOD)
    assert isinstance(request, LaunchRequest)
    assert request.to_json() == GOOD


def test_nothing_secret_is_printed():
    text = repr(parse_launch_request({**GOOD, "env": {"TOKEN": "hunter2"}}))
    assert "secret-key" not in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], "launch request"),
        ({**GOOD, "kernel_id": "../x"}, "kernel_id"),
        ({**GOOD, "kernel_id": "x" * 129}, "kernel_id"),
        ({**GOOD, "kernel_id": 7}, "kernel_id"),
        ({**GOOD, "argv": []}, "argv"),
        ({**GOOD, "argv": "python"}, "argv"),
        ({**GOOD, "argv": [""]}, "argv"),
        ({**GOOD, "argv": ["a\0b"]}, "argv"),
        ({**GOOD, "env": {"A": 1}}, "A"),
        ({**GOOD, "env": {"A=B": "1"}}, "A=B"),
        ({**GOOD, "env": []}, "env"),
        ({**GOOD, "cwd": "relative"}, "cwd"),
        ({**GOOD, "workspace": "relative"}, "workspace"),
        ({**GOOD, "template": 3}, "template"),
        ({**GOOD, "start_timeout_s": 0}, "start_timeout_s"),
        ({**GOOD, "start_timeout_s": True}, "start_timeout_s"),
        ({**GOOD, "start_timeout_s": "9"}, "start_timeout_s"),
        ({**GOOD, "client": None}, "client"),
        (with_client(transport="inproc"), "transport"),
        (with_client(transport="ipc", ip="relative"), "ip"),
        (with_client(signature_scheme="md5"), "signature_scheme"),
        (with_client(ports={"shell": -1}), "shell"),
        (with_client(ports={"shell": True}), "shell"),
        (with_client(ports=[]), "ports"),
        (with_client(curve_publickey="x"), "curve"),
    ],
)
def test_bad_input_is_named(body, named):
    with pytest.raises(ConfigError, match=named):
        parse_launch_request(body)
