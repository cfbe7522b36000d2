"""Running work as it is shown: on terminals of any width, in a pipe, and by whoever listens."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

import pyro_compress as pc
from pyro_compress.advance import advanced, hearing
from pyro_compress.cli.commands import wrapped
from pyro_compress.cli.console import search_texts, trial_line
from pyro_compress.compression import order
from pyro_compress.training import display
from pyro_compress.training.display import SEARCH, bar_texts, duration, epoch_line, last_line, terminal_bar
from pyro_compress.training.history import Epoch
from pyro_compress.tuning.reported import Reported
from pyro_compress.types import Splits

POINT = Epoch(1, 100, "point", validation_accuracy=0.925, validation_nll_nats=0.3154, seconds=0.4)
SVI = Epoch(
    100, 100, "svi", negative_elbo_nats=39205.4, kl_nats=38982.0, kl_weight=1.0, validation_accuracy=1.0,
    validation_nll_nats=12.1207, seconds=95.0, widths=[784, 200, 10],
)  # fmt: skip
NUMBERS = replace(POINT, validation_accuracy=None, validation_rmse=0.0123456)


def shown(width: int, *updates: tuple[object, ...]) -> tuple[str, list[str]]:
    """All that reaches a terminal of this width, and its lines without colours."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    with terminal_bar(console, ticking=False) as update:
        for one in updates:
            update(*one)  # type: ignore[arg-type]
    raw = text.getvalue()
    return raw, re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw))


@pytest.mark.parametrize(
    ("width", "wanted"),
    [
        (20, "100/100"), (40, "100.00 %, 12.1207 n"), (60, "100.00 %, 12.1207 nats"),
        (80, "svi, validation 100.00 %, 12.1207 nats"),
        (100, "svi, validation 100.00 %, 12.1207 nats, KL 38,982"),
    ],
)  # fmt: skip
def test_a_bar_is_one_line_of_any_terminal(width: int, wanted: str) -> None:
    raw, lines = shown(width, *(("fit", one.epoch, 100, *bar_texts(one)) for one in (POINT, NUMBERS, SVI)))
    assert max(map(len, lines)) <= width
    assert "\x1b[1A" not in raw  # it never had a second line
    assert "━" * 12 in raw if width >= 60 else "━" not in raw
    assert any(wanted in line and "100/100" in line for line in lines)


def test_what_is_next_begins_anew() -> None:
    _, lines = shown(80, (SEARCH, 7, 8), ("order of units", 0, 300), ("order of units", 150, 300))
    assert any("7/8" in line and SEARCH in line for line in lines)
    assert any("150/300" in line and "order of units" in line for line in lines)


def test_times_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 10))
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    console.get_time = lambda: float(next(clock))  # type: ignore[method-assign]
    with terminal_bar(console, ticking=False) as update:
        for done in range(1, 6):
            update("fit", done, 1000, "told")
    assert re.search(r"5/1000 +\d+:\d\d", text.getvalue())


def test_lines_of_a_pipe_stand_in_columns() -> None:
    lines = [epoch_line(one) for one in (POINT, NUMBERS, SVI)]
    assert [line.index("validation") for line in lines] == [17] * 3
    assert {re.search(r"\d s\b", lines[i]).end() for i in (0, 2)} == {59}
    assert lines[0].endswith("0 s  about 40 s left")
    assert lines[2].endswith("-ELBO      39,205 nats (KL      38,982 × 1.00)  units left: 784-200-10")
    assert last_line(SVI, POINT) == "100 epochs in 1 min 35 s; best on validation: 92.50 %, 0.3154 nats, in epoch 1"
    assert [duration(s) for s in (0.4, 59.6, 3600)] == ["0 s", "1 min 00 s", "1 h 00 min"]


def test_a_search_says_how_it_stands() -> None:
    first = Reported(5, 3, 12.34, (0.0333, 1234), "", 4, 60, (0.0292, 1180), 190.0)
    lines = [
        trial_line(first),
        trial_line(replace(first, trial=12, found=(0.1, 12), done=13)),
        trial_line(replace(first, found=None, failure="it failed", best=None, seconds_left=None, wanted=0)),
    ]
    assert lines[0] == (
        "[ 4/60] trial   3 at 5 epochs: validation error   3.33 %,     1,234 bytes (12.3 s); "
        "best 2.92 %, 1,180 bytes; about 3 min 10 s left"
    )
    assert lines[1].index("bytes (") == lines[0].index("bytes (")
    assert lines[2] == "[   4] trial   3 at 5 epochs: it failed (12.3 s); nothing meets the bound yet"
    for width in (30, 40, 80):
        raw, _ = shown(width, ("5 epochs", 4, 60, *search_texts(first)))
        assert "\x1b[1A" not in raw
        assert ("left" in raw) is (width == 80)


def test_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display.sys.stderr, "isatty", lambda: False)
    scores = [(0.9, 0.5), (0.95, 0.4), (0.95, 0.3), (0.94, 0.1)]
    lines = list[str]()
    with pc.ProgressBar(lines.append) as bar:
        for number, (accuracy, nll) in enumerate(scores, 1):
            bar.on_epoch(Epoch(number, 4, validation_accuracy=accuracy, validation_nll_nats=nll, seconds=number))
    assert lines[-1] == "4 epochs in 4 s; best on validation: 95.00 %, 0.3000 nats, in epoch 3"
    assert len(lines) == 5


def test_who_listens_hears_the_last_seconds(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of units is told a hundred times at most, and the same whether anybody hears."""
    if not order.streams.COMPILED:
        pytest.skip("the order of units is left as it is without the compiled coder")
    monkeypatch.setattr(order, "CODED", 40_000)
    fitted = pc.fit("mlp", digits, hidden=(12,), epochs=2, prior="log-uniform", compile="off")
    heard = list[tuple[str, int, int]]()
    with hearing(lambda what, done, total, *texts: heard.append((what, done, total))):
        told = fitted.compress(sparsity=0.5)
    orders = [(done, total) for what, done, total in heard if what == "order of units"]
    assert 2 <= len(orders) <= order.REPORTS
    assert all(0 < done <= total for done, total in orders)
    assert orders == sorted(orders)
    assert fitted.compress(sparsity=0.5).data == told.data
    advanced("nobody hears", 1, 2)


def test_paragraphs_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "warning: the fit had not settled; " * 5
    assert max(map(len, wrapped(sentence).splitlines())) > 90
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, wrapped(sentence).splitlines())) <= 40
