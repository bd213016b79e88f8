import sys

import pytest
from torpor.kernel_request import choose_workspace, explicit_env, kernel_argv, within

SERVER = {"PATH": "/bin", "JUPYTERHUB_API_TOKEN": "t0k", "LANG": "C", "LC_ALL": "C", "HOME": "/h"}


def env(given, *, spec=(), allowed=("LANG", "LC_*"), inherited=SERVER):
    return explicit_env(given, inherited, spec_names=spec, allowed=allowed)


def test_what_is_only_inherited_stays_outside():
    assert env(dict(SERVER)) == {"LANG": "C", "LC_ALL": "C"}


def test_what_the_caller_adds_or_changes_goes_in():
    given = {**SERVER, "JPY_SESSION_NAME": "/nb.ipynb", "HOME": "/other"}
    assert env(given, allowed=()) == {"JPY_SESSION_NAME": "/nb.ipynb", "HOME": "/other"}


def test_what_the_kernelspec_names_goes_in_even_when_equal():
    assert env(dict(SERVER), spec=["PATH"], allowed=()) == {"PATH": "/bin"}


@pytest.mark.parametrize("name", ["JPY_PARENT_PID", "PYTHONEXECUTABLE"])
def test_never(name):
    assert env({name: "1"}, spec=[name], allowed=[name]) == {}


def test_argv():
    argv = ["python", "{prefix}/x", "-f", "{connection_file}", "{unknown}", "{n}"]
    fields = {"prefix": "/p", "connection_file": "/host/file", "n": 3}
    assert kernel_argv(argv, fields, python="/py") == [
        "/py", "/p/x", "-f", "{connection_file}", "{unknown}", "3",
    ]  # fmt: skip
    major = f"python{sys.version_info[0]}"
    assert kernel_argv([major], {}, python="/py") == ["/py"]
    assert kernel_argv(["/usr/bin/python3"], {}, python="/py") == ["/usr/bin/python3"]
    assert kernel_argv(["R", "python"], {}, python="/py") == ["R", "python"]


@pytest.mark.parametrize(
    ("cwd", "root", "expected"),
    [
        ("/srv/nb/a", "/srv/nb", "/srv/nb"),
        ("/srv/nb", "/srv/nb/", "/srv/nb/"),
        ("/srv/nbx", "/srv/nb", "/srv/nbx"),
        ("/elsewhere", "/srv/nb", "/elsewhere"),
        ("/home/ada/work", "/home/ada", "/home/ada/work"),
        ("/home/ada/work/a", "/", "/home/ada/work/a"),
        ("/home/ada/work/a", "/home/ada/work", "/home/ada/work"),
        ("/x", None, "/x"),
    ],
)
def test_workspace(cwd, root, expected):
    assert choose_workspace(cwd, root, home="/home/ada") == expected


def test_within():
    assert within("/", "/")
    assert within("/a/../b", "/b")
    assert not within("/a", "/a/b")
