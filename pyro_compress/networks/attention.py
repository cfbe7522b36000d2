"""Attention with a `Linear` for each of its projections.

`torch.nn.MultiheadAttention` keeps the weights of three projections in one bare parameter, which is no layer that a
prior could be put on. `split_attention` replaces it by a module that computes the same from four linear layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2) on `(batch, tokens, features)`.

    It is called like `torch.nn.MultiheadAttention` and loads its weights; it returns no attention weights.

    Args:
        given: the module whose weights are copied; its inputs have the batch first.
    """

    batch_first = False  # keeps `nn.TransformerEncoderLayer` off its fused path, which looks for `in_proj_weight`

    def __init__(self, given: nn.MultiheadAttention):
        super().__init__()
        self.heads, self.dropout = given.num_heads, given.dropout
        size, biased = given.embed_dim, given.in_proj_bias is not None
        self.q, self.k, self.v = (nn.Linear(size, size, biased) for _ in range(3))
        self.out_proj = nn.Linear(size, size, given.out_proj.bias is not None)
        self.register_load_state_dict_pre_hook(_split)
        self.load_state_dict(given.state_dict())
        self._freeze_like(given)
        self.train(given.training)

    def _freeze_like(self, given: nn.MultiheadAttention) -> None:
        for name, one in given.named_parameters():
            owners = [self.q, self.k, self.v] if name.startswith("in_proj_") else [self.out_proj]
            for owner in owners:
                owner.get_parameter(name.removeprefix("in_proj_").removeprefix("out_proj.")).requires_grad_(
                    one.requires_grad
                )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = False, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Attend from `query` to `key` and `value`.

        Raises:
            ValueError: a mask.
        """
        if key_padding_mask is not None or attn_mask is not None:
            raise ValueError("attention masks are not supported")
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def _split(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Turn the tensors of `torch.nn.MultiheadAttention` in a state dict into those of `Attention`."""
    for kind in ("weight", "bias"):
        if (joined := state.pop(f"{prefix}in_proj_{kind}", None)) is not None:
            state.update({f"{prefix}{name}.{kind}": part for name, part in zip("qkv", joined.chunk(3), strict=True)})


def split_attention(net: nn.Module) -> nn.Module:
    """Replace every `torch.nn.MultiheadAttention` by an `Attention` with the same weights, in a copy of the network.

    Its outputs are the same, and it goes on loading the weights of the network as it was.

    Raises:
        ValueError: attention of a kind that has no such replacement; its path is named.
    """
    paths = [path for path, module in net.named_modules() if isinstance(module, nn.MultiheadAttention)]
    net = copy.deepcopy(net) if paths else net
    for path in paths:
        given = net.get_submodule(path)
        assert isinstance(given, nn.MultiheadAttention)
        if not given.batch_first or not given._qkv_same_embed_dim or given.bias_k is not None or given.add_zero_attn:
            raise ValueError(
                f"{path or 'the network'}: attention is supported with batch_first=True, keys and values as wide as "
                "the queries, without bias_kv and zero_attn"
            )
        if not path:
            return Attention(given)
        parent, _, leaf = path.rpartition(".")
        setattr(net.get_submodule(parent), leaf, Attention(given))
    return net
