"""Several draws from a posterior as one network: calibrated uncertainty, at as many times the cost.

The members share the input, each is pruned and shrunk like any other network, and a last operation, `mixture`, gives
the logarithm of their mean class probability: logits whose softmax is the posterior predictive distribution.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pyro_compress.compression.prune import kept, masks_at, scores
from pyro_compress.compression.shrink import shrink
from pyro_compress.data.splits import preprocessing_meta
from pyro_compress.runs.folder import load_run
from pyro_compress.types import Compressed, Graph, Node, Quantized, Splits


def ensemble(folder: Path, members: int, splits: Splits, sparsity: float | None = None, seed: int = 0) -> Compressed:
    """Draw networks from a run's posterior and join them.

    Args:
        folder: run folder of a fit with a prior.
        members: number of draws, 2 or more.
        splits: the run's data.
        sparsity: share of the weights to remove, in all members alike; None: those below the criterion's threshold.
        seed: seeds the draws.

    Raises:
        ValueError: fewer than two members, a deterministic run or a regression, no run folder.
    """
    if members < 2:
        raise ValueError(f"an ensemble of {members}: it needs two or more members")
    run = load_run(folder)
    if run.config.prior == "none":
        raise ValueError(f"{folder} holds a deterministic network (prior none); there is nothing to draw")
    if splits.task != "classification":
        raise ValueError(f"an ensemble averages class probabilities; the task of {folder} is {splits.task}")
    from pyro_compress.bayes.marginals import networks, read_marginals

    posterior = run.posterior
    if sparsity is None:
        masks = kept(posterior.layers, posterior.criterion)
    else:
        masks = masks_at(scores(posterior, posterior.criterion), sparsity)
    parts = []
    for member in networks(
        posterior, read_marginals(folder / "guide.safetensors", run.config, posterior), members, seed
    ):
        tensors = {name: tensor.detach() for name, tensor in member.state_dict().items()}
        parts.append(shrink(posterior.graph, tensors | {name: tensors[name] * mask for name, mask in masks.items()}))
    meta = dict(posterior.provenance.entries) | preprocessing_meta(run.called, splits)
    meta |= {"members": members, "draw_seed": seed}
    return joined(parts, meta)


def joined(parts: list[tuple[Graph, dict[str, torch.Tensor]]], meta: dict[str, object]) -> Compressed:
    """Networks of the same inputs and outputs as one; tensors of member 3 are named `member3.NAME`."""
    nodes, tensors, outputs = [parts[0][0].nodes[0]], dict[str, Quantized | np.ndarray](), list[int]()
    for number, (graph, values) in enumerate(parts):
        offset = len(nodes) - 1
        for node in graph.nodes[1:]:
            inputs = tuple(i + offset if i else 0 for i in node.inputs)
            parameters = {role: f"member{number}.{name}" for role, name in node.parameters.items()}
            nodes.append(replace(node, inputs=inputs, parameters=parameters))
        outputs.append(len(nodes) - 1)
        tensors |= {f"member{number}.{name}": value.float().numpy() for name, value in values.items()}
    return Compressed(replace(parts[0][0], nodes=(*nodes, Node("mixture", tuple(outputs)))), tensors, meta)
