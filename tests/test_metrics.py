"""Scores against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from pyro_compress.metrics import calibration_error, evaluate, score
from pyro_compress.types import Splits


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


def test_splits_by_name(digits: Splits) -> None:
    constant = evaluate(lambda x: torch.zeros(len(x), 10), digits, "test")
    assert constant.nll_nats == pytest.approx(np.log(10))
    with pytest.raises(ValueError, match="unknown split 'tests'; allowed: train, validation, test"):
        evaluate(lambda x: x, digits, "tests")
