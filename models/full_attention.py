"""Self-attention over all tokens by a fused kernel: no matrix of tokens by tokens is ever in memory.

Source: Vaswani et al. 2017, equation 1; the value convolution is Nyströmformer's (Xiong et al. 2021), so that the layer
has the same tensors as `models.transmil.NystromAttention`, which approximates it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.transmil import HEADS, NystromAttention


class FullAttention(NystromAttention):
    """Exact attention in the place of landmarks. Input and output [samples, tokens, width]; no token is padding."""

    def __init__(self, width: int, dropout: float, shared_start: bool = False) -> None:
        super().__init__(width, dropout, shared_start)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(q, k, v) + self.residual(v)
        return self.dropout(self.out(heads.transpose(1, 2).flatten(2)))
