"""LiteRT models (`.tflite`): float32 or 8-bit integers throughout, written and run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.atomic import write_atomically
from pyro_compress.deploy.phone.traced import (
    Refused,
    card_behind,
    given,
    located,
    module_of,
    need,
    nothing,
    one_by_one,
    quiet,
    with_card,
)
from pyro_compress.deploy.refusals import reason, some
from pyro_compress.types import Compressed

FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")
"""Types of tensors that no model of integers has."""
QUANTISER, WITHOUT = "LiteRT's quantiser", "without --int8, or to model.c --integer"


def need_litert() -> None:
    """Raise one clear error where the packages are missing."""
    need(("ai_edge_litert.interpreter", "ai_edge_quantizer.quantizer", "litert_torch"), "LiteRT", "litert")


def write_litert(network: Compressed, card: Mapping[str, Any], path: Path, examples: Tensor | None = None) -> list[str]:
    """Write a model that takes one example at a time.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`; lies behind the model.
        path: where to.
        examples: `(n, *input_shape)` for calibration: all tensors become integers, inputs and outputs too.

    Returns:
        What the user should know.

    Raises:
        ValueError: an operation that the converter does not know, or a tensor that stays in floats.
    """
    with quiet():
        try:
            content = _model(network, examples)
        except Refused as error:
            few = None if examples is None else examples[:1]
            raise located(network, error, lambda beginning: _model(beginning, few)) from error
    write_atomically(path, with_card(content, card))
    if examples is None:
        return ["one example at a time"]
    types, _ = tensor_types(content)
    counted = ", ".join(f"{count} {kind.lower()}" for kind, count in types.most_common())
    return [f"one example at a time, 8-bit integers: of its tensors {counted}, none float"]


def _model(network: Compressed, examples: Tensor | None) -> bytes:
    """The model, of floats or calibrated on examples; raises `Refused`."""
    import litert_torch

    try:
        content = bytes(litert_torch.convert(module_of(network), nothing(network)).model_content())
    except Exception as error:  # whatever the tool chain says of an operation
        raise Refused("LiteRT's converter", error, "to .onnx") from error
    _check_it_runs(content, "to .onnx")
    if examples is not None:
        content = _in_integers(content, network, examples)
        if floats := tensor_types(content)[1]:
            raise Refused(QUANTISER, f"{some(floats)} would stay in floats", WITHOUT)
        _check_it_runs(content, WITHOUT)
    return content


def _check_it_runs(content: bytes, instead: str) -> None:
    """Refuse operations that the converter writes and the runtime does not know."""
    try:
        _interpreter(model_content=content)
    except Exception as error:  # whatever the runtime says
        raise Refused("LiteRT's runtime", error, instead) from error


def _interpreter(**given: Any) -> Any:
    """LiteRT's runtime with a model that is ready to run, which says what it hands over to XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    loaded = Interpreter(num_threads=1, **given)
    loaded.allocate_tensors()
    return loaded


def _in_integers(content: bytes, network: Compressed, examples: Tensor) -> bytes:
    """The model with integers for floats, ranges of activations taken from examples one by one."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    try:
        ((signature, named),) = Interpreter(model_content=content).get_signature_list().items()
        rows = (given(examples[i : i + 1], network) for i in range(len(examples)))
        feeds = [dict(zip(named["inputs"], (_narrow(part.numpy()) for part in row), strict=True)) for row in rows]
        rules = recipe_manager.RecipeManager()
        rules.load_quantization_recipe(recipe.static_wi8_ai8())
        # its own calibration takes a moving average, which clips whatever the last examples do not reach
        seen = calibrator.Calibrator(content, torch.get_num_threads(), qsv_update_func=min_max_update)
        seen.calibrate({signature: feeds}, rules)
        maker = quantizer.Quantizer(content, recipe.static_wi8_ai8())
        return bytes(maker.quantize(seen.get_model_qsvs()).quantized_model)
    except Exception as error:  # whatever the quantiser says of an operation
        raise Refused(QUANTISER, error, WITHOUT) from error


def _narrow(x: np.ndarray) -> np.ndarray:
    """Whole numbers as the converter takes them, in 32 bits."""
    return x.astype(np.int32) if x.dtype == np.int64 else x


def tensor_types(content: bytes) -> tuple[Counter[str], list[str]]:
    """How many tensors of a model have which type, and the operations that read or write floats."""
    from ai_edge_litert import schema_py_generated as schema

    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromPackedBuf(content)
    counted, floats = Counter[str](), set[str]()
    for graph in model.subgraphs:
        kinds = [types[tensor.type] for tensor in graph.tensors]
        counted.update(kinds)
        for operator in graph.operators:
            touched = [*operator.inputs, *operator.outputs]
            if any(kinds[i] in FLOATS for i in touched if i >= 0):
                code = model.operatorCodes[operator.opcodeIndex]
                floats.add(codes[max(code.builtinCode, code.deprecatedBuiltinCode)])
    return counted, sorted(floats)


def load_litert(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function of inputs in the range the network was trained on, and its outputs as real numbers."""
    entry = card_behind(path)["input"]
    with quiet():
        try:
            loaded = _interpreter(model_path=str(path))
            runner = loaded.get_signature_runner()
        except Exception as error:  # whatever the runtime says
            raise ValueError(f"LiteRT does not run the export: {reason(error)}") from error
    inputs = runner.get_input_details()
    names = next(iter(loaded.get_signature_list().values()))["inputs"]
    ((target, output),) = runner.get_output_details().items()

    def run(*arguments: np.ndarray) -> np.ndarray:
        feeds = {name: as_taken(x, inputs[name]) for name, x in zip(names, arguments, strict=True)}
        try:
            return as_real(runner(**feeds)[target], output)
        except Exception as error:  # whatever the runtime says
            raise ValueError(f"LiteRT does not run the export: {reason(error)}") from error

    return one_by_one(run, entry)


def as_taken(x: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """Values as an input of a model takes them: by its type, on its grid."""
    scale, zero = about["quantization"]
    if not scale:
        return x.astype(about["dtype"])
    bounds = np.iinfo(about["dtype"])
    return np.clip(np.rint(x / scale) + zero, bounds.min, bounds.max).astype(about["dtype"])


def as_real(x: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """What an output of a model means, in float32."""
    scale, zero = about["quantization"]
    return ((x.astype(np.float32) - zero) * np.float32(scale)) if scale else x.astype(np.float32)
