"""Files behind the faces of other packages: a service, transformers, timm; each where that package is installed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pyro_compress.cli.main import main
from pyro_compress.runs.folder import Run
from pyro_compress.types import Splits

FOLDER = Path(__file__).parents[1] / "examples" / "elsewhere"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_service_answers_with_the_ensembles_probabilities(fitted_run: Run, digits: Splits, tmp_path: Path) -> None:
    """Those of ONNX Runtime; what is no such input is refused in words."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx2")
    import onnxruntime
    from fastapi.testclient import TestClient

    path = tmp_path / "ensemble.onnx"
    done = CliRunner().invoke(main, ["export", str(fitted_run.path), "--ensemble", "3", "-o", str(path)])
    assert done.exit_code == 0, done.output
    client = TestClient(example("service").service(str(path)))
    x = digits.test.x[:5].numpy()
    answer = client.post("/predict", json={"inputs": x.tolist()}).json()
    session = onnxruntime.InferenceSession(str(path))
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x})[0])
    wanted = logits.double().softmax(1)
    np.testing.assert_allclose(answer["probabilities"], wanted.numpy(), atol=1e-6)
    np.testing.assert_allclose(answer["entropy"], (-wanted * wanted.log()).sum(1).numpy(), atol=1e-6)
    assert answer["classes"] == [str(int(i)) for i in wanted.argmax(1)]
    shape = list(x.shape[1:])
    assert client.get("/").json()["shape"] == shape
    for inputs, told in (
        ([], "the model takes"), ([[1, 2]], "inputs of shape [2], the model takes"), ((99 + x).tolist(), "takes"),
        ([[1], [1, 2]], "rows of numbers, all of one shape"), (["a"], "rows of numbers"),
    ):  # fmt: skip
        refused = client.post("/predict", json={"inputs": inputs})
        assert refused.status_code == 422
        assert told in refused.json()["detail"]


@pytest.mark.slow
def test_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Back from `save_pretrained`, the same logits as the file, within the tolerance of the network given."""
    pytest.importorskip("transformers")
    example("hugging_face").main(tmp_path, epochs=12)
    told = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "digits").iterdir()} == {"config.json", "network.pcn"}
    within(told)


@pytest.mark.slow
def test_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    example("timm_network").main(tmp_path, "test_byobnet", epochs=6)
    within(capsys.readouterr().out)


def within(told: str) -> None:
    given, back = (float(word.rstrip("%,")) for word in told.split() if word.rstrip(",").endswith("%") and "." in word)
    assert given < 10
    assert back < given + 3
