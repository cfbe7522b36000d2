"""What every command is: options under headings, errors of one line, and what is doubtful in the last lines."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from pyro_compress.doubts import gathered
from pyro_compress.foreign import NO_CODE, one_line, printable
from pyro_compress.settings.fit import HEADINGS, RUNNING

ELSEWHERE = "Weights that were trained elsewhere, instead of RUN"
RESULTS = "Results"
ORDER = ("", *HEADINGS[:-1], ELSEWHERE, "What is removed and rounded", "Fine-tuning", RESULTS, RUNNING)
"""Headings as they follow each other; others come last."""
OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")
"""What torch says where nothing is left: of the machine's limits, not a fault of ours."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the signal's number, as shells have it."""
NUMBERS: dict[type[click.ParamType], str] = {
    click.types.IntParamType: "N",
    click.IntRange: "N",
    click.types.FloatParamType: "NUMBER",
    click.FloatRange: "NUMBER",
}
"""What stands for a number in `--help`, where its option names nothing better."""


class Option(click.Option):
    """An option that stands under a heading of `--help`.

    Args:
        heading: its heading; empty: "Options".
        former: what it was called; that is still understood, and shown nowhere.
        arguments: as for `click.Option`.
    """

    def __init__(self, *arguments: Any, heading: str = "", former: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.heading, self.former = heading, former


def renamed(params: Sequence[click.Parameter], words: Sequence[str]) -> list[str]:
    """A command line whose options have the names of today.

    Raises:
        ClickException: one is given by both of its names.
    """
    names = {one.former: max(one.opts, key=len) for one in params if isinstance(one, Option) and one.former}
    heads = [word.partition("=")[0] for word in words]
    heads = heads[: heads.index("--")] if "--" in heads else heads
    for head in heads:
        if names.get(head) in heads:
            raise click.ClickException(f"{head} and {names[head]} are one option: give {names[head]}")
    known = [names.get(head, head) + word[len(head) :] for head, word in zip(heads, words, strict=False)]
    return [*known, *words[len(heads) :]]


@contextmanager
def no_code(asked: bool) -> Iterator[None]:
    """Let nothing import code of the user's meanwhile, in this process and those that it starts, if that is asked."""
    if not asked or os.environ.get(NO_CODE):
        yield
        return
    os.environ[NO_CODE] = "1"
    try:
        yield
    finally:
        del os.environ[NO_CODE]


class Command(click.Command):
    """A command whose `--help` shows its options under headings, in the order of `ORDER`, and ends in examples.

    Args:
        examples: what to type, without the program's name.
        arguments: as for `click.Command`.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        self.examples = examples
        lines = "\n".join(f"  pyro-compress {example}" for example in examples)
        super().__init__(*arguments, **options | {"epilog": f"\b\nExamples:\n{lines}"})
        for param in self.params:
            if isinstance(param, click.Option) and param.metavar is None and not param.is_flag:
                param.metavar = NUMBERS.get(type(param.type))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, earlier names of options counting as those of today."""
        return super().parse_args(ctx, renamed(self.params, args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        sections = dict[str, list[tuple[str, str]]]()
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "heading", ""), []).append(record)
        for heading in sorted(sections, key=lambda one: ORDER.index(one) if one in ORDER else len(ORDER)):
            with formatter.section(heading or "Options"):
                formatter.write_dl(sections[heading])

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and end in what is doubtful of the result: on standard error beside JSON, and with `--quiet`."""
        with no_code(bool(ctx.meta.get(NO_CODE))), gathered() as doubts:
            result = super().invoke(ctx)
        if os.environ.get("RANK", "0") == "0":
            for text in doubts:
                echo(wrapped(f"warning: {text}"), err=hushed())
        return result


class Group(click.Group):
    """Commands in the order of work; misuse is told in text that can be shown: a file's name may hold anything."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """As click makes one."""
        with interruptible(), shown_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run the command."""
        with interruptible(), shown_errors():
            return super().invoke(ctx)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends every command with one line and exit code 130, which is no failure's; click would make it 1."""
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            echo("stopped before it was done", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


@contextmanager
def shown_errors() -> Iterator[None]:
    """Messages of click's errors are made fit to be shown."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)  # declared final, but for whoever reads it alone
        raise


def echo(text: str, err: bool = False) -> None:
    """Print a text, without what acts on a terminal: it may repeat what stands in somebody's file."""
    click.echo(printable(text), err=err)


QUIET = "pyro_compress.quiet"
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, help="Print nothing but warnings and errors.",
    callback=lambda ctx, param, value: ctx.meta.update({QUIET: value}), cls=Option, heading=RUNNING,
)  # fmt: skip


def tell(text: str, err: bool = False) -> None:
    """Print what `--quiet` leaves out: results for people, and how far the work has come."""
    if not click.get_current_context().meta.get(QUIET):
        echo(text, err)


def hushed() -> bool:
    """Whether no progress is shown: with `--quiet`, and where JSON is all that is asked for."""
    context = click.get_current_context()
    return bool(context.meta.get(QUIET) or context.params.get("as_json"))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user did wrong becomes one line on standard error and exit code 1."""
    try:
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(phrase in str(error) for phrase in OUT_OF_MEMORY):
            raise
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        message = one_line(text)
        raise click.ClickException(message or type(error).__name__) from None


def wrapped(text: str) -> str:
    """A paragraph in lines of at most 100 characters, or as a narrower terminal has them."""
    width = min(100, max(20, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else 100
    return textwrap.fill(text, width, subsequent_indent="  ")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main` as a command runs: what a user did wrong is one line and exit code 1."""
    try:
        with interruptible(), one_line_errors():
            main()
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
