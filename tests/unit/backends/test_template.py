"""Templates refuse impossible values, by name and field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torpor.errors import ConfigError
from torpor.template import Network, Template, WorkspaceMode


def test_defaults_are_possible_and_json() -> None:
    template = Template()
    shape = template.to_json()
    assert json.loads(json.dumps(shape))["workspace"] == "rw"
    assert shape["network"] == "none"
    assert set(shape) == set(Template.__dataclass_fields__)


def test_plain_strings_become_enums() -> None:
    template = Template(workspace="overlay", network="none")  # type: ignore[arg-type]
    assert template.workspace is WorkspaceMode.OVERLAY
    assert template.network is Network.NONE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, "template name ''"),
        ({"name": "a b"}, "template name 'a b'"),
        ({"workspace": "write"}, "workspace 'write' is not one of rw, ro, overlay, none"),
        ({"network": "host"}, "network 'host'"),
        ({"memory_bytes": 1 << 20}, "memory_bytes must be at least 268435456"),
        ({"pids": 1}, "pids must be at least 32"),
        ({"open_files": 3}, "open_files"),
        ({"home_bytes": 0}, "home_bytes"),
        ({"tmp_bytes": 0}, "tmp_bytes"),
        ({"shm_bytes": 0}, "shm_bytes"),
        ({"cpu_milli": 5}, "cpu_milli"),
        ({"cpu_milli": -1}, "cpu_milli"),
        ({"start_timeout_s": 0}, "start_timeout_s"),
        ({"start_timeout_s": float("nan")}, "start_timeout_s"),
        ({"read_only": ("data",)}, "read_only 'data'"),
        ({"read_only": ("/data/../etc",)}, "read_only"),
        ({"read_only": ("/",)}, "read_only '/'"),
    ],
)
def test_impossible_values_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template(**changes)
    assert said in caught.value.message


def test_limits_at_their_least_are_possible() -> None:
    Template(cpu_milli=10, read_only=("/data",), pids=32, name="gpu-less_2")
