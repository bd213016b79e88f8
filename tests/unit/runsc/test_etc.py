"""The generated ``/etc`` knows one powerless user and no server."""

from __future__ import annotations

from torpor.runsc.etc import HOME, HOST_PIECES, USER, etc_files


def test_the_user_is_found_by_name_and_number() -> None:
    files = etc_files("t0123456789a")
    name, _, uid, gid, *_, home, shell = files["/etc/passwd"].splitlines()[0].split(":")
    assert (name, uid, gid, home, shell) == (USER, "0", "0", HOME, "/bin/sh")
    assert files["/etc/group"].startswith(f"{USER}:x:0:")


def test_names_are_looked_up_nowhere() -> None:
    files = etc_files("t0123456789a")
    assert files["/etc/resolv.conf"] == ""
    assert "hosts: files\n" in files["/etc/nsswitch.conf"]
    assert "127.0.0.1\tlocalhost" in files["/etc/hosts"]


def test_nothing_of_the_hosts_people_is_bound() -> None:
    for secret in (
        "passwd",
        "shadow",
        "group",
        "hosts",
        "hostname",
        "resolv.conf",
        "machine-id",
        "ssh",
    ):
        assert f"/etc/{secret}" not in HOST_PIECES
    assert "/etc" not in HOST_PIECES
    assert "/etc/ssl" not in HOST_PIECES, "it holds private keys"
