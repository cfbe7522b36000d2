"""docs/reference/command-line.md, made from the commands: `python -m pyro_compress.cli.page > FILE`."""

from __future__ import annotations

from typing import Any

import click

from pyro_compress.cli.main import main as program

INTRODUCTION = """# Command line

What `pyro-compress COMMAND --help` says. This page is made by `python -m pyro_compress.cli.page`;
[settings](../settings.md) has every setting with its range.
"""
WIDTH = 96
"""Columns of the page."""


def page() -> str:
    """The page: the program, then its commands in the order of work."""
    outer = _context(program, "pyro-compress", None)
    parts = [INTRODUCTION, _told(outer)]
    for name in program.list_commands(outer):
        command = program.get_command(outer, name)
        assert command
        parts += [f"## {name}\n", _told(_context(command, name, outer))]
    return "\n".join(parts).rstrip() + "\n"


def _context(command: click.Command, name: str, outer: click.Context | None) -> click.Context:
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=outer, **settings)


def _told(context: click.Context) -> str:
    return f"```text\n{context.command.get_help(context).rstrip()}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
