"""``torpor templates``."""

from __future__ import annotations

from torpor.cli.command import Command
from torpor.cli.text import size, table
from torpor.config import load_settings
from torpor.template import Template


class TemplatesCommand(Command):
    name = "torpor templates"
    description = """List the templates a kernel can be started from.

    They come from torpor_config.py in Torpor's configuration folder; `default` always exists. The
    daemon reads the same files, so no daemon is needed for this."""

    def run(self) -> int:
        settings = load_settings(self.paths)
        templates = [settings.templates[name] for name in sorted(settings.templates)]
        document = {
            "default": settings.default_template,
            "templates": [template.to_json() for template in templates],
        }
        rows = [_row(template, settings.default_template) for template in templates]
        headers = ["NAME", "WORKSPACE", "MEMORY", "CPU", "HOME", "NETWORK", "DESCRIPTION"]
        self.show(document, table(headers, rows))
        return 0


def _row(template: Template, default: str) -> list[str]:
    return [
        f"{template.name} *" if template.name == default else template.name,
        template.workspace.value,
        size(template.memory_bytes),
        f"{template.cpu_milli / 1000:g}" if template.cpu_milli else "no limit",
        size(template.home_bytes),
        template.network.value,
        template.description,
    ]
