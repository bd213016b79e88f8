"""``torpor kernelspec install|list|remove``."""

from __future__ import annotations

import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any

from traitlets import Bool, Unicode

from torpor.cli.command import ALIASES, FLAGS, Command
from torpor.cli.kernelspec_store import (
    Place,
    default_kernel,
    place_of,
    read_kernelspec,
    remove_kernelspec,
    set_default_kernel,
    write_kernelspec,
)
from torpor.cli.text import table
from torpor.cli.twins import PROVISIONER, checked_name, provisioner_of, twin_name, twin_of
from torpor.config import load_settings
from torpor.errors import ConfigError


def all_specs() -> dict[str, dict[str, Any]]:
    """Give every installed kernelspec: name -> ``{"resource_dir": str, "spec": {...}}``."""
    from jupyter_client.kernelspec import KernelSpecManager

    return dict(KernelSpecManager().get_all_specs())


class InstallCommand(Command):
    name = "torpor kernelspec install"
    description = """Add sandboxed twins of installed kernels: "Python 3 (gVisor)" beside "Python 3".

    Without arguments every kernel that runs on this machine gets a twin; with names only those.
    Without a flag for the place: into the active environment, else for the user."""
    examples = cleandoc("""
    torpor kernelspec install --default
    torpor kernelspec install python3 --name big --template big
    """)
    max_positionals = sys.maxsize
    flags: dict[str, Any] = {  # noqa: RUF012
        **FLAGS,
        "user": ({"InstallCommand": {"user": True}}, "Install for this user."),
        "sys-prefix": ({"InstallCommand": {"sys_prefix": True}}, "Install into this environment."),
        "replace": ({"InstallCommand": {"replace": True}}, "Replace what has the same name."),
        "default": (
            {"InstallCommand": {"make_default": True}},
            "Make it the kernel that servers choose first.",
        ),
    }
    aliases: dict[str, Any] = {  # noqa: RUF012
        **ALIASES,
        "prefix": "InstallCommand.prefix",
        "name": "InstallCommand.twin",
        "display-name": "InstallCommand.display_name",
        "template": "InstallCommand.template",
    }

    user = Bool(False, help="Install for this user.").tag(config=True)
    sys_prefix = Bool(False, help="Install into this environment.").tag(config=True)
    prefix = Unicode("", help="Install below PREFIX/share/jupyter.").tag(config=True)
    replace = Bool(False, help="Replace what has the same name; off: keep it and fail.").tag(
        config=True
    )
    make_default = Bool(
        False, help="Make it the kernel that servers choose first, and JupyterLab shows first."
    ).tag(config=True)
    twin = Unicode("", help="Name of the twin; empty: SOURCE-torpor.").tag(config=True)
    display_name = Unicode("", help="What people see; empty: derived from the source's.").tag(
        config=True
    )
    template = Unicode("", help="The template to start from; empty: the default one.").tag(
        config=True
    )

    def run(self) -> int:
        place = place_of(user=self.user, sys_prefix=self.sys_prefix, prefix=self.prefix)
        load_settings(self.paths).template(self.template or None)  # an unknown one is an error now
        sources = self._sources()
        named = self.twin or self.display_name
        if named and len(sources) != 1:
            raise ConfigError(
                "--name and --display-name need exactly one kernel to make a twin of",
                hint="name it: `torpor kernelspec install python3 --name ...`",
            )
        installed = [self._install(name, source, place) for name, source in sources.items()]
        if self.make_default:
            set_default_kernel(place.config, _first_choice(installed))
        rows = [[one["name"], one["display_name"], one["path"]] for one in installed]
        self.show({"installed": installed}, table(["NAME", "DISPLAY NAME", "PATH"], rows))
        return 0

    def _sources(self) -> dict[str, dict[str, Any]]:
        specs = all_specs()
        local = {name: one for name, one in specs.items() if provisioner_of(one["spec"]) is None}
        if not self.extra_args:
            if not local:
                raise ConfigError("no kernel is installed", hint="`pip install ipykernel`")
            return local
        for name in self.extra_args:
            if name not in specs:
                known = ", ".join(sorted(local)) or "none"
                raise ConfigError(f"there is no kernel {name!r}", hint=f"installed: {known}")
            if name not in local:
                other = provisioner_of(specs[name]["spec"])
                raise ConfigError(f"kernel {name!r} is started by {other}: it can have no twin")
        return {name: local[name] for name in self.extra_args}

    def _install(self, name: str, source: dict[str, Any], place: Place) -> dict[str, Any]:
        spec = twin_of(
            source["spec"],
            template=self.template or None,
            python=sys.executable if place.shared else None,
            display_name=self.display_name or None,
        )
        twin = checked_name(self.twin or twin_name(name))
        target = place.kernels / twin
        there = read_kernelspec(target)
        if there != spec:
            if target.exists() and not self.replace:
                raise ConfigError(
                    f"{target} exists and is different", hint="--replace, or another --name"
                )
            resources = source.get("resource_dir")
            write_kernelspec(target, spec, Path(resources) if resources else None)
        return {
            "name": twin,
            "display_name": spec["display_name"],
            "source": name,
            "path": str(target),
            "changed": there != spec,
        }


class ListCommand(Command):
    name = "torpor kernelspec list"
    description = "List the kernels that run sandboxed."

    def run(self) -> int:
        twins = [
            {
                "name": name,
                "display_name": one["spec"].get("display_name"),
                "template": _template(one["spec"]),
                "path": one["resource_dir"],
            }
            for name, one in sorted(all_specs().items())
            if provisioner_of(one["spec"]) == PROVISIONER
        ]
        text = "no sandboxed kernel is installed; add some with `torpor kernelspec install`"
        if twins:
            headers = ["NAME", "DISPLAY NAME", "TEMPLATE", "PATH"]
            text = table(
                headers, [[value or "(default)" for value in one.values()] for one in twins]
            )
        self.show({"kernelspecs": twins}, text)
        return 0


class RemoveCommand(Command):
    name = "torpor kernelspec remove"
    description = "Remove sandboxed twins by name. Kernels that are not ours are never touched."
    max_positionals = sys.maxsize

    def run(self) -> int:
        if not self.extra_args:
            return self.usage_error("name at least one kernel")
        specs = all_specs()
        for name in self.extra_args:
            one = specs.get(name)
            if one is None or provisioner_of(one["spec"]) != PROVISIONER:
                raise ConfigError(
                    f"there is no sandboxed kernel {name!r}", hint="see `torpor kernelspec list`"
                )
        for name in self.extra_args:
            target = Path(specs[name]["resource_dir"])
            remove_kernelspec(target)
            self._forget_default(name, target)
        self.show({"removed": self.extra_args}, f"removed {', '.join(self.extra_args)}")
        return 0

    def _forget_default(self, name: str, target: Path) -> None:
        """Take back ``--default`` where it was given at the place the twin was installed to."""
        places = [
            place_of(user=True, sys_prefix=False, prefix=""),
            place_of(user=False, sys_prefix=True, prefix=""),
        ]
        if len(target.parents) > 3:
            places.append(place_of(user=False, sys_prefix=False, prefix=str(target.parents[3])))
        for place in places:
            if target.parent == place.kernels and default_kernel(place.config) == name:
                set_default_kernel(place.config, None)


class KernelspecCommand(Command):
    name = "torpor kernelspec"
    description = "Add, list and remove sandboxed twins of installed kernels."
    subcommands: dict[str, Any] = {  # noqa: RUF012
        "install": (InstallCommand, "Add sandboxed twins of installed kernels."),
        "list": (ListCommand, "List the kernels that run sandboxed."),
        "remove": (RemoveCommand, "Remove sandboxed twins."),
    }


def _first_choice(installed: list[dict[str, Any]]) -> str:
    """Give the twin of ``python3``, which servers choose first otherwise, else the first of all."""
    names = [one["name"] for one in installed if one["source"] == "python3"]
    return str(names[0] if names else installed[0]["name"])


def _template(spec: dict[str, Any]) -> str | None:
    config = spec["metadata"]["kernel_provisioner"].get("config") or {}
    return config.get("template")
