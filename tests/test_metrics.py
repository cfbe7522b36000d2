"""Scores against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from pyro_compress.metrics import auroc, calibration_error, entropy, evaluate, out_of_domain_auroc, score
from pyro_compress.types import Data, Splits


def test_against_scikit_learn() -> None:
    logits, y = torch.randn(200, 4), torch.arange(200) % 4
    probs = logits.double().softmax(1).numpy()
    scores = score(logits, y)
    assert scores.accuracy == accuracy_score(y, probs.argmax(1))
    assert scores.nll_nats == pytest.approx(log_loss(y, probs), rel=1e-9)
    assert scores.brier == pytest.approx(((probs - np.eye(4)[y]) ** 2).sum(1).mean(), rel=1e-9)


def test_calibration_error_by_hand() -> None:
    # two bins: 0.6 confident and half right, 0.9 confident and always right
    probs = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    assert calibration_error(probs, torch.tensor([0, 1, 0, 0])) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4, abs=1e-6)
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers(value: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = value
    with pytest.raises(ValueError, match=r"outputs are not finite \(NaN or infinity\) for 1 of 3 examples"):
        score(logits, torch.tensor([0, 1, 2]))
    logits[1, 2] = -float("inf")  # a class that is ruled out
    assert score(logits, torch.tensor([0, 1, 2])).accuracy == pytest.approx(1 / 3)


def test_splits_by_name(digits: Splits) -> None:
    constant = evaluate(lambda x: torch.zeros(len(x), 10), digits, "test")
    assert constant.nll_nats == pytest.approx(np.log(10))
    with pytest.raises(ValueError, match="unknown split 'tests'; allowed: train, validation, test"):
        evaluate(lambda x: x, digits, "tests")


def test_auroc_is_that_of_scikit_learn() -> None:
    low, high = torch.randn(300).round(decimals=1), (torch.randn(200) + 0.5).round(decimals=1)
    labels = [0] * 300 + [1] * 200
    assert auroc(low, high) == pytest.approx(roc_auc_score(labels, torch.cat([low, high])), abs=1e-12)
    assert auroc(torch.zeros(3), torch.ones(4)) == 1
    assert auroc(torch.ones(3), torch.ones(4)) == 0.5


def test_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [1.0, 1e-30]]))
    assert entropy(logits).tolist() == pytest.approx([np.log(2), 0], abs=1e-9)


def test_out_of_domain(digits: Splits) -> None:
    flat = Splits(digits.train, digits.validation, Data(digits.test.x * 0, digits.test.y), digits.classes)

    def certain_where_there_is_ink(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x.flatten(1).sum(1, keepdim=True), (0, 9))

    assert out_of_domain_auroc(certain_where_there_is_ink, digits, flat, "test") == 1
