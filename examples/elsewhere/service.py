"""A service that answers with class probabilities, averaged over networks that were drawn from a posterior.

    pip install fastapi uvicorn onnxruntime
    pyro-compress export runs/digits --ensemble 5 -o ensemble.onnx
    MODEL=ensemble.onnx uvicorn --app-dir examples/elsewhere service:app
    curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"inputs": [[[[0, 0.5, ...]]]]}'

Neither torch nor pyro-compress is needed here: the model says itself what it takes and what its classes are called.
"""

import json
import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Request(BaseModel):
    """A batch of inputs, nested as the model's own input is."""

    inputs: list


class Answer(BaseModel):
    """For every input its likeliest class, all probabilities, and their entropy in nats: 0 is sure."""

    classes: list[str]
    probabilities: list[list[float]]
    entropy: list[float]


def service(path: str) -> FastAPI:
    """The service of one exported network or ensemble."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    entry, names, task = about["input"], about["classes"], about.get("task", "classification")
    if task != "classification" or "inputs" in entry:
        raise ValueError(f"{path}: {task} of {entry['meaning']}; this service is for one class of one input")
    kind = np.dtype(entry["dtype"])
    shape = session.get_inputs()[0].shape[1:]
    app = FastAPI(title="pyro-compress", description=f"takes {entry['meaning']}")

    @app.get("/")
    def what() -> dict:
        """What the model takes."""
        return {"input": entry["meaning"], "shape": shape, "classes": names}

    @app.post("/predict")
    def predict(request: Request) -> Answer:
        """Probabilities of every class."""
        try:
            x = np.asarray(request.inputs, np.float64)
        except ValueError as error:
            raise HTTPException(422, "inputs: rows of numbers, all of one shape") from error
        if list(x.shape[1:]) != shape or not len(x):
            raise HTTPException(422, f"inputs of shape {list(x.shape[1:])}, the model takes {shape}")
        bounds = [0, entry["scale"]] if kind.kind == "u" else entry["range"]
        if bounds and not bounds[0] <= x.min() <= x.max() <= bounds[1]:
            raise HTTPException(422, f"this model takes {entry['meaning']}")
        logits = session.run(None, {entry["name"]: x.astype(kind)})[0].astype(np.float64)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = odds / odds.sum(1, keepdims=True)
        entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(1)
        return Answer(
            classes=[names[i] for i in probabilities.argmax(1)],
            probabilities=probabilities.tolist(),
            entropy=entropy.tolist(),
        )

    return app


if "MODEL" in os.environ:
    app = service(os.environ["MODEL"])
