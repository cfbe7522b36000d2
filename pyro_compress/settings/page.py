"""docs/settings.md, made from the declarations: `python -m pyro_compress.settings.page > docs/settings.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pyro_compress.settings.compress import CompressConfig
from pyro_compress.settings.declared import Config, Declared, declared, having
from pyro_compress.settings.export import ExportConfig
from pyro_compress.settings.fit import HEADINGS, FitConfig
from pyro_compress.settings.studies import MethodConfig, SearchConfig, StudyConfig

INTRODUCTION = """# Settings

What determines a fit and a compression. A setting has one name: `FitConfig(kl_weight=0.1)` in Python,
`kl_weight = 0.1` (or `kl-weight`) in TOML, `--kl-weight 0.1` on the command line. `--config FILE` reads a TOML file,
`--print-config` prints one. This page is made by `python -m pyro_compress.settings.page`.
"""
KINDS = {
    bool: "yes or no", int: "whole number", float: "number", str: "text", tuple[int, ...]: "whole numbers",
    tuple[float, ...]: "numbers", tuple[str, ...]: "texts", dict[str, float]: "table of numbers",
    float | dict[str, float]: "number, or table of them", dict[str, str]: "table of texts",
    dict[str, Any]: "table of lists",
}  # fmt: skip
"""Type of a setting -> in words."""


def page(fit: type[Config] = FitConfig, compress: type[Config] = CompressConfig) -> str:
    """The page, of these configurations."""
    parts = [INTRODUCTION, "## A fit\n\n`FitConfig`, the options of `fit`, `[fit]` of a TOML file.\n", *sections(fit)]
    apart, fixed = having(fit, identity=False), having(fit, searched=False)
    parts += [
        f"{listed(apart)} say where and how fast a fit runs: they make no other fit, and no other hash.\n",
        f"`tune` may search every one but {listed(fixed)}.\n",
        "## A compression\n\n`CompressConfig`, the options of `compress`, `[compress]` of a TOML file. In Python the "
        "settings of fine-tuning are a part: `CompressConfig(finetuning=FineTune(epochs=30, lr=1e-3))`, or\n"
        "`CompressConfig.of({'finetune': 30, 'finetune_lr': 1e-3})`.\n",
        *sections(compress),
        f"`tune` may search the share of weights that is kept, {listed(having(compress, searched=True))}.\n",
    ]  # fmt: skip
    parts += [
        "## An export\n\n`ExportConfig`, the options of `export`.\n",
        *sections(ExportConfig),
        "## A search\n\n`SearchConfig`, the file of `tune`, beside its tables ([how to](how-to/tune.md)).\n",
        *sections(SearchConfig),
        "## A comparison\n\n`StudyConfig`, the file of `compare`; `[fit]` and every one of `[[methods]]` may hold "
        "settings of a fit as well\n([how to](how-to/compare.md)).\n",
        *sections(StudyConfig),
        *sections(MethodConfig),
    ]
    return "\n".join(parts).rstrip() + "\n"


def sections(of: type[Config]) -> Iterator[str]:
    """A table for every heading."""
    rows = declared(of).values()
    groups = dict.fromkeys(row.group for row in rows if not row.setting.unlisted)
    for group in sorted(groups, key=lambda one: HEADINGS.index(one) if one in HEADINGS else len(HEADINGS)):
        head = [f"### {group}", ""] if group else []
        lines = [line(row) for row in rows if row.group == group and not row.setting.unlisted]
        yield "\n".join([*head, "| setting | values | default | |", "| --- | --- | --- | --- |", *lines, ""])


def line(row: Declared) -> str:
    """One row of a table."""
    names = [f"`{one}`" for one in row.setting.among if one] + [row.setting.other] * bool(row.setting.other)
    values = [", ".join(names) or KINDS[row.whole], row.setting.range and f"`{row.setting.range}`"]
    default = "" if row.default is None or row.setting.kind == "switch" else shown(row.default)
    name = f"`{row.name}`" + (f", `{row.option}`" if row.option != f"--{row.name.replace('_', '-')}" else "")
    name += f", in Python `{row.field}`" if row.setting.name else ""
    help = row.setting.help.replace("{names}", "one of these")
    cells = (name, ", ".join(filter(None, values)), default, help)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def shown(default: Any) -> str:
    """A default, where it says anything."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default or "")
    return f"`{default if default == 0 else text}`" if text or default == 0 else ""


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(page(), end="")
