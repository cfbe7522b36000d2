"""The command `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyro_compress.cli.commands import RESULTS, Command, Option, echo, one_line_errors
from pyro_compress.cli.console import progress_shown

if TYPE_CHECKING:
    from pyro_compress.runs.doctor import Check, Diagnosis


@click.command(
    cls=Command, short_help="Say what this machine has, and try every way of working on it.",
    examples=("doctor", "doctor --device cpu -o doctor.json"),
)  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where fits are tried.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None,
    help="Write everything as JSON, to attach to an issue.", cls=Option, heading=RESULTS,
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file.", cls=Option, heading=RESULTS)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object and nothing else.")
def doctor(device: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Say what this machine has, and try every way of working on it: fits, files, exports, studies, each small.

    Ends with exit code 1 where something fails that should work here; what is not installed is no failure.
    """
    with one_line_errors():
        from pyro_compress.runs.doctor import doctor as looked
        from pyro_compress.runs.ways import WAYS

        done = 0

        def told(check: Check) -> None:
            nonlocal done
            done += 1
            show(check.name, done, len(WAYS))

        with progress_shown() as show:
            found = looked(device, out=out, force=force, on_check=told)
    echo(found.to_json() if as_json else diagnosis_text(found))
    if out and not as_json:
        echo(f"everything is in {out}", err=True)
    if failed := found.failed:
        raise click.ClickException(f"{len(failed)} of {len(found.checks)} ways fail; the first: {failed[0].name}")


def diagnosis_text(found: Diagnosis) -> str:
    """A diagnosis for people."""
    facts = found.machine | {"packages": _versions(found, True), "not installed": _versions(found, False)}
    width = max(len(name) for name in facts) + 2
    lines = [f"{name:<{width}}{text}" for name, text in facts.items() if text]
    wide = max(len(check.name) for check in found.checks) + 2
    lines += ["", *(f"{c.name:<{wide}}{c.outcome:<9}{c.seconds:6.1f} s  {c.note}".rstrip() for c in found.checks)]
    return "\n".join(lines)


def _versions(found: Diagnosis, there: bool) -> str:
    return ", ".join(f"{name} {number}".strip() for name, number in found.packages.items() if bool(number) == there)
