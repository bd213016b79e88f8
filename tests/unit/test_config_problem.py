"""What is said of configuration files that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from torpor.config_problem import config_problem
from traitlets.config.loader import JSONFileConfigLoader, PyFileConfigLoader


def problem_of(path: Path) -> str:
    loader = PyFileConfigLoader if path.suffix == ".py" else JSONFileConfigLoader
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a program may raise anything
        loader(path.name, path=str(path.parent)).load_config()
    assert isinstance(caught.value, Exception)
    return config_problem(str(path), caught.value).message


@pytest.mark.parametrize(
    ("name", "text", "line", "said"),
    [
        ("a.py", "x = 1\nc.Torpor.store = {\n", 2, "this is not Python: '{' was never closed"),
        ("a.py", "\n\nc.Torpor.store = nosuch\n", 3, "NameError: name 'nosuch' is not defined"),
        ("a.py", "def f():\n    return 1 / 0\nf()\n", 2, "ZeroDivisionError: division by zero"),
        ("a.py", "open('/no/such/file')\n", 1, "FileNotFoundError"),
        ("a.json", '{\n "a": 1,\n}', None, "this is not JSON"),
    ],
)
def test_file_and_line(tmp_path: Path, name: str, text: str, line: int | None, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    message = problem_of(path)
    assert message.startswith(f"{path}, line {line or ''}")
    assert said in message


def test_a_file_that_another_loads(tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text("\nx = (\n")
    path = tmp_path / "a.py"
    path.write_text("load_subconfig('more.py')\n")
    assert problem_of(path).startswith(f"{tmp_path}/more.py, line 2: ")


def test_one_that_cannot_be_read() -> None:
    problem = config_problem("/x/a.py", PermissionError(13, "Permission denied"))
    assert problem.message == "/x/a.py cannot be read: Permission denied"
