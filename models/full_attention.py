"""Self-attention over all tokens by a fused kernel: no matrix of tokens by tokens is ever in memory.

Source: Vaswani et al. 2017, equation 1; the value convolution is Nyströmformer's (Xiong et al. 2021), so that the layer
has the same tensors as `models.transmil.NystromAttention`, which approximates it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from models.transmil import HEADS, NystromAttention


class FullAttention(NystromAttention):
    """Exact attention in the place of landmarks. Input and output [samples, tokens, width]; no token is padding.

    Of `rows` alone, only their queries are computed; those of `constant` rows without a backward pass.
    """

    def __init__(self, width: int, dropout: float, shared_start: bool = False) -> None:
        super().__init__(width, dropout, shared_start)

    def forward(self, tokens: Tensor, rows: Tensor | None = None, constant: Tensor | None = None) -> Tensor:
        width = tokens.shape[-1]
        of_queries, of_others = self.qkv.weight.split([width, 2 * width])
        k, v = linear(tokens, of_others).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        nearby = self.residual(v)

        def read(rows: Tensor | None) -> Tensor:
            asking = tokens if rows is None else tokens[:, rows]
            q = linear(asking, of_queries).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            heads = scaled_dot_product_attention(q, k, v) + (nearby if rows is None else nearby[:, :, rows])
            return self.dropout(self.out(heads.transpose(1, 2).flatten(2)))

        if constant is None or rows is not None:
            return read(rows)
        others = torch.ones(tokens.shape[1], device=tokens.device).index_fill(0, constant, 0).nonzero().squeeze(1)
        learnt = read(others)
        with torch.no_grad():
            results = learnt.new_empty(tokens.shape).index_copy(1, constant, read(constant))
        return results.index_copy(1, others, learnt)
