"""Other people's packages, where they are installed: data sets, trainers, Laplace approximations as they really are."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_compress as pc

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
X = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Module(nn.Module):
    """What `transformers.Trainer` trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, values, labels=None):
        logits = self.net(values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_data_set_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        {
            "values": datasets.Sequence(datasets.Value("float32"), length=4),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    given = datasets.Dataset.from_dict({"values": X.tolist(), "label": Y.tolist()}, features=kinds)
    wanted = pc.splits_from((X, Y))
    splits = pc.splits_from(given)
    assert splits.classes == ("no", "yes")
    assert torch.equal(splits.train.x, wanted.train.x)
    assert torch.equal(splits.train.y, wanted.train.y)
    both = datasets.DatasetDict({"train": given, "test": given})
    assert pc.splits_from(both).sizes == {"train": 160, "validation": 80, "test": 240}


def test_lightning_hands_its_network_over() -> None:
    lightning = pytest.importorskip("lightning")

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.05)

    after, whole = (
        pc.AfterTraining(lambda net: pc.posterior(net, "laplace", (X, Y)), lambda module: module.net),
        Training(),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=2, callbacks=[after.lightning()], enable_model_summary=False, **quiet)
    trainer.fit(whole, DataLoader(TensorDataset(X, Y), 40))
    assert torch.equal(after.result.layers["weight"].mean, whole.net.weight)


def test_a_trainer_of_hugging_face_hands_its_network_over(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    after, whole = (
        pc.AfterTraining(lambda net: pc.posterior(net, "laplace", (X, Y)), lambda module: module.net),
        Module(),
    )
    rows = [{"values": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)]
    how = transformers.TrainingArguments(
        str(tmp_path), max_steps=5, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    transformers.Trainer(whole, how, train_dataset=rows, callbacks=[after.hugging_face()]).train()
    assert torch.equal(after.result.layers["weight"].mean, whole.net.weight)


@pytest.mark.parametrize("weights", ["all", "last_layer"])
@pytest.mark.parametrize("hessian", ["diag", "kron", "full"])
def test_a_laplace_approximation_of_others(weights: str, hessian: str) -> None:
    laplace = pytest.importorskip("laplace")
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    theirs = laplace.Laplace(net, "classification", subset_of_weights=weights, hessian_structure=hessian)
    theirs.fit(DataLoader(TensorDataset(X, Y), 40))
    found = pc.posterior(net, theirs, (X, Y)).layers
    assert torch.allclose(found["2.weight"].mean, net[2].weight)
    assert bool(found["2.weight"].std.min() > 0)
    assert bool(found["0.weight"].std.any()) == (weights == "all")
