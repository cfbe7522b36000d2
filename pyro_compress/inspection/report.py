"""One page per run: result, bytes, pictures, diagnostics and configuration in a single HTML file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from pyro_compress.atomic import write_atomically
from pyro_compress.bayes.diagnostics import AUTO, Size
from pyro_compress.inspection import page
from pyro_compress.inspection.filed import Filed, filed, tiles
from pyro_compress.inspection.filed import sections as file_sections
from pyro_compress.inspection.gallery import pictures
from pyro_compress.inspection.page import Animation, Picture
from pyro_compress.inspection.readings import layer_rows, readings
from pyro_compress.inspection.summary import Inspection, counted, inspect_run
from pyro_compress.pcn import file
from pyro_compress.places import check_file
from pyro_compress.scores import Quality
from pyro_compress.studies.page import write_comparison
from pyro_compress.types import Splits


def report(
    folder: str | Path, out: str | Path | None = None, network: str | Path | None = None, draws: int = AUTO,
    force: bool = False, threads: int = 0, data: str = "", data_dir: str = "",
) -> Path:  # fmt: skip
    """Write one self-contained HTML page on a run, or on the results of `compare`.

    Args:
        folder: a run folder or a results folder.
        out: the page; None: `report.html` in the folder.
        network: of a run, its `.pcn` file; None: `network.pcn` in the folder, if there is one.
        draws: networks drawn from the posterior; 0: as many as go with its size.
        force: replace a page.
        threads: CPU threads; 0 leaves torch's default.
        data: where the run's data lie now; empty: where they lay.
        data_dir: folder of the torchvision data sets.

    Returns:
        Where the page lies.

    Raises:
        ValueError: neither kind of folder, something that does not go with it, something else at `out`.
        OSError: the page cannot be written.

    Examples:
        >>> import pyro_compress as pc
        >>> pc.report("missing", "page.html")
        Traceback (most recent call last):
        ValueError: missing is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)
    """
    folder = Path(folder)
    where = Path(out or folder / "report.html")
    check_file(where, "page", force)
    if not (folder / "study.json").is_file():
        write_report(folder, where, Path(network) if network else None, data_dir, Size(draws), threads, data)
        return where
    for option, given in {"--data": data, "--network": network}.items():
        if given:
            raise ValueError(f"{option} goes with a run; {folder} holds the results of compare")
    write_comparison(folder, where)
    return where


def write_report(
    run: Path, out: Path, network: Path | None = None, data_dir: str = "", size: Size | None = None, threads: int = 0,
    data: str = "",
) -> None:  # fmt: skip
    """Look at a run and write its page.

    Args:
        run: the run folder.
        out: the HTML file.
        network: a `.pcn` file of that run; `RUN/network.pcn` if there is one and none is named.
        data_dir: folder of the torchvision data sets.
        size: how much is drawn for the diagnostics.
        threads: CPU threads; 0 leaves torch's default.
        data: where the run's data lie now; empty: where they lay.

    Raises:
        ValueError: as `inspect_run`; no such folder for the page; ArviZ or matplotlib not installed.
        OSError: the file cannot be written.
    """
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is no folder; make it first, or choose another --out")
    if network is None and (run / "network.pcn").is_file():
        network = run / "network.pcn"
    if network is not None:
        file.read(network)  # refused before any time is spent
    inspection, diagnosis = inspect_run(run, data_dir, size, threads=threads, data=data)
    inspection = counted(inspection, network) if network else inspection
    splits = inspection.run.splits(data_dir)
    found = filed(network, splits) if network else None
    text = html(inspection, pictures(inspection, diagnosis, splits), splits, found)
    write_atomically(out, text.encode())


def html(inspection: Inspection, shown: Sequence[Picture | Animation], splits: Splits, found: Filed | None) -> str:
    """The page."""
    config = inspection.run.config
    title = f"{config.net} on {inspection.run.called}, prior {config.prior}"
    rest = [
        page.section("Scores on the test split", _scores(inspection, found.test_scores if found else None)),
        page.section("Layers of the posterior", page.table(layer_rows(inspection.layers)) + _layers_note(inspection)),
        page.section("How far to trust it", _readings(inspection)),
        page.section("Pictures", page.gallery(shown)),
        page.section("To repeat it", _commands(inspection, found.path if found else None)),
    ]
    epochs = f", {config.epochs} epochs" if inspection.history else ""
    told = f"{inspection.run.posterior.parameters_total:,} values{epochs}, seed {config.seed}."
    sections = [tiles(inspection, found), page.note(told), *file_sections(inspection, found, splits), *rest]
    return page.document(title, "pyro-compress, one run", sections)


def _scores(inspection: Inspection, compressed: Quality | None) -> str:
    rows: list[tuple[str, ...]] = [("", *inspection.test_scores.cells)]
    for name, scores in (
        ("posterior mean", inspection.test_scores),
        ("draws averaged", inspection.sampled.test_scores if inspection.sampled else None),
        ("compressed file", compressed),
    ):
        if scores:
            rows.append((name, *scores.cells.values()))
    return page.table(rows)


def _layers_note(inspection: Inspection) -> str:
    criterion, threshold = inspection.criterion
    filed = "Units in file: those that compress left. " if any(layer.in_file for layer in inspection.layers) else ""
    return (
        f'<p class="note">Kept: weights whose {escape(criterion)} score is above {threshold:.3g}, a rule of thumb; '
        "compress searches for its own threshold. Units above: inputs that are read and units that are left by that "
        f"rule. {filed}"
        "Bits per weight: KL divided by the number of weights. ±: standard error of a KL that is a mean over draws.</p>"
    )


def _readings(inspection: Inspection) -> str:
    items = "".join(f"<dt>{escape(topic)}</dt><dd>{escape(text)}</dd>" for topic, text in readings(inspection).items())
    return f"<dl>{items}</dl>"


def _commands(inspection: Inspection, network: Path | None) -> str:
    run = inspection.run.path
    lines = [f"pyro-compress fit --config config.toml --out {run.name}"]
    if network:
        lines.append(f"pyro-compress compress {run.name} --out {network.name}")
        lines.append(f"pyro-compress evaluate {network.name}")
    lines += [f"pyro-compress inspect {run.name}", f"pyro-compress report {run.name} --out report.html"]
    note = (
        "" if network is None else "The options of compress that made the file are not stored; these are its defaults. "
    )
    return (
        f'<pre>{escape(chr(10).join(lines))}</pre><p class="note">{note}config.toml, less folders and machine:</p>'
        f"<pre>{escape(_configuration(run))}</pre>"
    )


def _configuration(run: Path) -> str:
    """The run's configuration, less folders and machine: a page travels."""
    import tomli_w

    document = tomllib.loads((run / "config.toml").read_text())
    document.pop("machine", None)
    document.pop("called", None)
    fit = document.get("fit", {})
    fit.pop("data_dir", None)
    for name in ("data", "test_data", "init", "net"):
        if Path(str(fit.get(name, ""))).is_absolute():
            fit[name] = Path(fit[name]).name
    return tomli_w.dumps(document)
