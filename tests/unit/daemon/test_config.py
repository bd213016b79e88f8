import asyncio
import json
import threading

import pytest
from torpor import config
from torpor.config import DaemonSettings, SettingsSource, load_settings, user_paths
from torpor.errors import ConfigError
from torpor.paths import resolve_paths


@pytest.fixture
def paths(tmp_path):
    found = resolve_paths({"TORPOR_HOME": str(tmp_path)}, uid=1, home=tmp_path)
    found.config.mkdir()
    return found


def write(paths, text, name="torpor_config.py"):
    (paths.config / name).write_text(text)


def test_nothing_configured(paths):
    settings = load_settings(paths, {})
    assert settings.default_template == "default"
    assert settings.template(None).name == "default"
    assert settings.daemon.idle_exit_s == DaemonSettings().idle_exit_s
    assert settings.daemon.concurrent_starts >= 2
    assert settings.runsc_path is None


def test_a_store(paths):
    assert load_settings(paths, {}).store is None
    write(
        paths, "c.Torpor.store = {'url': 's3://b/x', 'local': 'drop', 'options': {'secret': 'S'}}"
    )
    settings = load_settings(paths, {})
    assert (settings.store.remote.url, settings.store.local) == ("s3://b/x", "drop")
    assert "'S'" not in repr(settings)


def test_python_and_json_files_count_both(paths):
    write(
        paths,
        """
c.Torpor.templates = {
    "big": {"memory_bytes": "16G", "workspace": "ro", "env": {"A": "b"}, "env_allow": ["X"]}
}
c.Torpor.default_template = "big"
c.TorporDaemon.idle_exit_s = 1.5
c.TorporDaemon.concurrent_starts = 7
""",
    )
    write(paths, json.dumps({"Torpor": {"runsc_path": "/r"}}), "torpor_config.json")
    settings = load_settings(paths, {})
    big = settings.template(None)
    assert (big.name, big.memory_bytes, big.workspace) == ("big", 16 << 30, "ro")
    assert (big.env, big.env_allow) == ({"A": "b"}, ("X",))
    assert settings.daemon.idle_exit_s == 1.5
    assert settings.daemon.concurrent_starts == 7
    assert settings.runsc_path == "/r"
    assert load_settings(paths, {"TORPOR_RUNSC": "/e"}).runsc_path == "/e"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("this is no Python (", "line 1: this is not Python"),
        ("raise RuntimeError('my own')", "my own"),
        ("c.Torpor.templats = {}", r"torpor_config.py sets Torpor.templats, .* mean 'templates'\?"),
        ("c.Torpor.store = {'url': 'x'}", "torpor_config.py: c.Torpor.store: 'x' is not the URL"),
        ("c.Torpor.store = 's3://b/x'", "store"),
        (
            "c.Torpor.templates = {'a': {'memory': 1}}",
            "torpor_config.py: template 'a' has no field 'memory'",
        ),
        ("c.Torpor.templates = {'a': 7}", "dictionary"),
        ("c.Torpor.templates = {'a': {'pids': 'x'}}", r"pids 'x' \(str\) is not a whole number"),
        ("c.Torpor.templates = {'a': {'memory_bytes': 'much'}}", "much"),
        ("c.Torpor.templates = {'a': {'workspace': 'all'}}", "workspace"),
        ("c.Torpor.default_template = 'missing'", "torpor_config.py: .*missing"),
        ("c.TorporDaemon.idle_exit_s = 'soon'", "idle_exit_s"),
        ("c.TorporDaemon.idle_exit_s = 0", "idle_exit_s"),
        ("c.TorporDaemon.concurrent_starts = -1", "concurrent_starts"),
    ],
)
def test_wrong_configuration_is_named(paths, text, named):
    write(paths, text)
    with pytest.raises(ConfigError, match=named):
        load_settings(paths, {})


def test_unknown_template_lists_the_known():
    with pytest.raises(ConfigError) as caught:
        load_settings(user_paths({"TORPOR_HOME": "/nonexistent"}), {}).template("huge")
    assert "'huge'" in caught.value.message
    assert "default" in caught.value.hint


def test_the_file_that_is_wrong_is_named(paths):
    write(paths, "c.Torpor.templates = {'a': {}}")
    write(paths, json.dumps({"Torpor": {"templates": {"b": {"pids": 7.5}}}}), "torpor_config.json")
    with pytest.raises(ConfigError, match=r"torpor_config\.json: template 'b': pids 7.5"):
        load_settings(paths, {})
    write(paths, json.dumps({"TorporDaemon": {"pool": "yes"}}), "torpor_config.json")
    with pytest.raises(ConfigError, match=r"torpor_config\.json has a wrong value: .*pool"):
        load_settings(paths, {})


async def test_files_are_read_again_when_they_change(paths):
    source = SettingsSource(paths)
    first = await source.current()
    assert await source.current() is first
    write(paths, "c.Torpor.templates = {'a': {}}")
    assert "a" in (await source.current()).templates
    write(paths, "broken(")
    for _ in range(2):
        with pytest.raises(ConfigError):
            await source.current()
    (paths.config / "torpor_config.py").unlink()
    assert "a" not in (await source.current()).templates


async def test_a_read_that_ends_late_does_not_outlive_a_change(paths, monkeypatch):
    source, read, go_on = SettingsSource(paths), threading.Event(), threading.Event()

    def slowly(*args):
        settings = load_settings(*args)
        read.set()
        go_on.wait(10)
        return settings

    monkeypatch.setattr(config, "load_settings", slowly)
    late = asyncio.create_task(source.current())
    assert await asyncio.to_thread(read.wait, 10)
    monkeypatch.setattr(config, "load_settings", load_settings)
    write(paths, "c.Torpor.templates = {'a': {}}")
    assert "a" in (await source.current()).templates
    go_on.set()
    assert "a" not in (await late).templates
    assert "a" in (await source.current()).templates
