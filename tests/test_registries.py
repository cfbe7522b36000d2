"""Every registry has what everything that walks it needs; a new prior goes through every command."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_compress import metrics
from pyro_compress.bayes import model, priors
from pyro_compress.bayes.estimators import ESTIMATORS
from pyro_compress.bayes.guides import GUIDES
from pyro_compress.bayes.marginals import FAMILIES
from pyro_compress.compression import prune, target
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.data import augment, datasets, splits, tasks
from pyro_compress.deploy.formats import EXPORTERS
from pyro_compress.inspection.readings import readings
from pyro_compress.inspection.summary import inspect_run
from pyro_compress.networks import nets
from pyro_compress.runs.config import BASELINE_LR, resolve
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.post_training import POSTERIORS
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.registries import names_in
from pyro_compress.training import live, point, sparse
from pyro_compress.tuning import space, storage
from pyro_compress.tuning.plan import point_of, read_plan
from pyro_compress.types import LayerPosterior, LayerShape, Posterior, Splits

REGISTRIES = {
    "bayes/priors.py PRIORS": priors.PRIORS,
    "bayes/estimators.py ESTIMATORS": ESTIMATORS,
    "bayes/guides.py GUIDES": GUIDES,
    "data/datasets.py DATASETS": datasets.DATASETS,
    "data/augment.py AUGMENTATIONS": augment.AUGMENTATIONS,
    "data/tasks.py TASKS": tasks.TASKS,
    "networks/nets.py NETS": nets.NETS,
    "training/point.py OPTIMIZERS": point.OPTIMIZERS,
    "training/point.py SCHEDULES": point.SCHEDULES,
    "training/live.py LOGS": live.LOGS,
    "training/sparse.py PRUNING": sparse.PRUNING,
    "compression/prune.py CRITERIA": prune.CRITERIA,
    "runs/post_training.py POSTERIORS": POSTERIORS,
    "tuning/storage.py SAMPLERS": storage.SAMPLERS,
    "deploy/formats.py EXPORTERS": EXPORTERS,
}


@pytest.mark.parametrize("where", REGISTRIES)
def test_the_command_line_offers_what_there_is(where: str) -> None:
    """It reads the names from the source, without importing anything."""
    assert names_in(*where.split()) == tuple(REGISTRIES[where])


SIDE_TABLES = {
    "thresholds of criteria": (prune.THRESHOLDS, prune.CRITERIA),
    "likelihoods of tasks": (model.LIKELIHOODS, tasks.TASKS),
    "scores of tasks": (metrics.SCORES, tasks.TASKS),
    "rates of optimizers": (BASELINE_LR, point.OPTIMIZERS),
}


@pytest.mark.parametrize("table", SIDE_TABLES)
def test_side_tables_have_a_row_for_each(table: str) -> None:
    rows, registry = SIDE_TABLES[table]
    assert set(rows) == set(registry)


def test_tables_name_only_what_there_is() -> None:
    assert set(space.FIT_SPACES) <= {"none", *priors.PRIORS}
    assert set(splits.PREPROCESSING) <= set(datasets.DATASETS)


@pytest.mark.parametrize("name", priors.PRIORS)
def test_every_prior_has_what_its_consumers_need(name: str) -> None:
    prior = priors.PRIORS[name]
    assert prior.criterion in prune.CRITERIA
    assert prior.estimator in ESTIMATORS
    for grouping in prior.groupings:
        shape = LayerShape("1.weight", (3, 4), grouping)
        starts = prior.start(shape, torch.randn(3, 4), 0.01)
        assert {start.family.__name__ for start in starts.values()} <= set(FAMILIES)
        assert shape.site in starts
    names = [parameter.option for parameter in space.fit_space(name, "natural")]
    assert "natural_lr" in names
    assert not {"lr", "lr_scale"} & set(names)
    for parameter in (*space.fit_space(name), *space.fit_space(name, "natural")):
        option = parameter.option
        assert option in FitConfig.__dataclass_fields__ or option.startswith("prior_options.")
        lowest = {option.partition(".")[2]: parameter.low} if option.startswith("prior_options.") else {}
        prior.with_options(lowest)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", priors.PRIORS)
def test_every_combination_is_resolved_or_refused_in_words(name: str, estimator: str, guide: str) -> None:
    config = FitConfig(prior=name, estimator=estimator, guide=guide, epochs=2, device="cpu")
    if guide != "mean-field" and estimator != "weight":
        with pytest.raises(ValueError, match="use --estimator weight, or --guide mean-field"):
            resolve(config, 100)
    else:
        assert resolve(config, 100).estimator == estimator


@pytest.mark.parametrize("name", prune.CRITERIA)
def test_every_criterion_scores_every_kind_of_layer(name: str) -> None:
    mean = torch.randn(3, 4)
    grouped = LayerPosterior(mean, mean.abs(), torch.rand(1, 4) + 0.1, torch.rand(1, 4), "input")
    for layer in (grouped, LayerPosterior(mean, mean.abs()), LayerPosterior(mean, torch.zeros(3, 4))):
        score = prune.CRITERIA[name](layer)
        assert not score.expand_as(mean).isnan().any()


@pytest.mark.parametrize("name", point.SCHEDULES)
def test_every_schedule_starts_above_zero_and_stays_finite(name: str) -> None:
    factors = [point.SCHEDULES[name](progress / 20) for progress in range(21)]
    assert all(0 <= factor < math.inf for factor in factors)
    assert factors[0] > 0


@pytest.mark.parametrize("name", sparse.RULES)
def test_every_rule_ends_at_its_target(name: str) -> None:
    found = [sparse.RULES[name](progress / 20, 0.9) for progress in range(21)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.9)


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 12, 10)])
@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_every_augmentation_keeps_shape_and_type(name: str, shape: tuple[int, ...]) -> None:
    changed = augment.AUGMENTATIONS[name](torch.rand(shape), torch.Generator().manual_seed(0))
    assert changed.shape == shape
    assert changed.dtype == torch.float32


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_has_all_its_parts(name: str) -> None:
    task = tasks.TASKS[name]
    shape = (6, 3, 4) if task.positions or name == "reconstruction" else (6, 3)
    outputs, y = torch.randn(shape), torch.randn(shape)
    if name == "classification":
        y = torch.tensor([0, 1, 2, 0, 1, 2])
    elif task.positions:
        y = torch.randint(0, 3, (6, 4))
        y[0, 0] = 2
    elif name == "multi-label":
        y = (y > 0).float()
    assert task.loss(outputs, y, 0.5).shape == ()
    assert task.log_likelihood(outputs, y, 0.5).shape == (6,)
    assert task.constant(y).shape == shape
    assert task.predicted(outputs).shape == shape
    assert task.uniform_nats(3) > 0
    assert task.counted(y) == {"reconstruction": 72}.get(name, 24 if task.positions else 6)
    assert tasks.constant_nats(task, y) > 0
    assert task.sample(outputs, 0.5).shape == (y if name != "reconstruction" else outputs).shape
    assert task.mixture([outputs, outputs]).shape[0] == 6


@pytest.mark.parametrize("name", storage.SAMPLERS)
def test_every_sampler_is_made_from_a_seed(name: str) -> None:
    with storage.quietly():
        assert hasattr(storage.SAMPLERS[name](0), "sample_independent")


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_every_export_is_a_suffix_or_the_folder(suffix: str) -> None:
    assert suffix == "folder" or suffix.startswith(".")


# --- a prior that only this test knows


NEW = {
    "new": replace(priors.PRIORS["gaussian"], warmup=0.0),
    "new-groups": replace(priors.PRIORS["normal-jeffreys"], pretrain=0.0, warmup=0.0),
}


@pytest.mark.parametrize("name", NEW)
def test_a_new_prior_goes_through_every_command(
    name: str, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(priors.PRIORS, name, NEW[name])
    config = FitConfig(prior=name, hidden=(6,), epochs=2, limit=200, device="cpu", threads=1)
    run = fit_run(config, tmp_path / "run")
    assert load_run(tmp_path / "run").config.prior == name
    report = compress_run(run.posterior, digits, tmp_path / "network.pcn", target.Goal(sparsity=0.3))
    assert report.criterion == NEW[name].criterion
    inspection, _ = inspect_run(tmp_path / "run")
    assert ("improper" in readings(inspection).get("prior", "")) is not NEW[name].proper
    study = tmp_path / "study.toml"
    study.write_text(f'trials = 1\n[fit]\nprior = "{name}"\nhidden = [6]\nlimit = 200\nepochs = 2\n')
    found, _ = read_plan(study, device="cpu", threads=1)
    assert ("fit.lr_group" in {parameter.name for parameter in found.before}) is (NEW[name].factors is not None)
    chosen = point_of(found, {parameter.name: parameter.high for parameter in found.space}, 2, 200)
    assert chosen.config.prior == name
    assert isinstance(run.posterior, Posterior)
