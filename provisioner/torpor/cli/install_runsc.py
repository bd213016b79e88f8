"""``torpor install-runsc``."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

from traitlets import Enum, Unicode

from torpor.cli.command import ALIASES, Command, progress
from torpor.config import load_settings
from torpor.runsc.install import ORDER, Installed, Options, Source, install_runsc
from torpor.runsc.install_release import BASE_URL
from torpor.runsc.version import RELEASE

_ANY = "any"


class InstallRunscCommand(Command):
    name = "torpor install-runsc"
    description = """Install gVisor's runsc for this user.

    Tried in this order: one that is there already and new enough; gVisor's official release, checked
    against its published SHA-512; a build from gVisor's Go module (one to three minutes); the
    distribution's package. With --from only that source is used, even if there is one already."""
    examples = cleandoc("""
    torpor install-runsc
    torpor install-runsc --from go
    torpor install-runsc --from release --release latest
    """)
    aliases: dict[str, Any] = {  # noqa: RUF012
        **ALIASES,
        "from": "InstallRunscCommand.source",
        "release": "InstallRunscCommand.release",
        "release-url": "InstallRunscCommand.release_url",
    }

    source = Enum(
        [_ANY, *(source.value for source in ORDER)],
        default_value=_ANY,
        help="The only source to use: existing, release, go or distribution; any: one after the other.",
    ).tag(config=True)
    release = Unicode(
        RELEASE,
        help="""The official release to install: YYYYMMDD, YYYYMMDD.N or latest. The default is the one
        nearest to the build that Torpor is tested on.""",
    ).tag(config=True)
    release_url = Unicode(
        BASE_URL,
        help="Where official releases are, or a mirror: RELEASE/ARCH/gvisor.tar.bz2 below it.",
    ).tag(config=True)

    def run(self) -> int:
        settings = load_settings(self.paths)
        installed = install_runsc(
            self.paths,
            report=progress,
            sources=ORDER if self.source == _ANY else [Source(self.source)],
            options=Options(
                override=settings.runsc_path,
                allow_old=settings.allow_old_runsc,
                release_url=self.release_url,
                release=self.release,
            ),
        )
        self.show(installed.to_json(), _text(installed))
        return 0 if installed.runsc.ok else 1


def _text(installed: Installed) -> str:
    runsc = installed.runsc
    where = {
        Source.EXISTING: "was there already",
        Source.RELEASE: "from gVisor's official release",
        Source.GO: "built from gVisor's Go module",
        Source.DISTRIBUTION: "from the distribution's package",
    }
    text = f"runsc {runsc.build} at {runsc.path}: {where[installed.source]}"
    if runsc.reason:
        text += f"\nwarning: {runsc.reason}\n  what to do: {runsc.hint}"
    return text
