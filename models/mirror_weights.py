"""Names of MIRROR's tensors in released checkpoints (MIRROR specification, section 7.13), to exchange weights.

The tensors are the same in number and shape when the model is built in reference mode. By default the retention decoder
has no table of positions, and everything else is as released.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

TRUNK = {
    "project": "_fc1.0",
    "trunk.class_token": "cls_token",
    "trunk.position.convolutions.0": "pos_layer.proj",
    "trunk.position.convolutions.1": "pos_layer.proj1",
    "trunk.position.convolutions.2": "pos_layer.proj2",
    "trunk.norms.0": "layer1.norm",
    "trunk.norms.1": "layer2.norm",
    "trunk.attentions.0": "layer1.attn",
    "trunk.attentions.1": "layer2.attn",
    "trunk.norm": "norm",
}
ATTENTION = {"qkv": "to_qkv", "out": "to_out.0", "residual": "res_conv"}
RETENTION = {
    "mask_token": "mask_token",
    "position": "retention_gene_embed",
    "embed": "retention_embed",
    "layer.attention": "retention_blocks.0.attn",
    "layer": "retention_blocks.0",
    "norm": "retention_norm",
    "head": "retention_head",
}
STYLE = {
    "mlp": "style_encoder_mlp",
    "mean": "style_mu",
    "log_variance": "style_logstd",
    "decoder": "style_decoder",
    "prototypes": "prototypes",
}


def released_name(name: str) -> str:
    """The released name of a tensor of `models.mirror_pretraining` or `models.mirror`."""
    part, _, rest = name.partition(".")
    if part == "style":
        return _renamed(rest, STYLE)
    encoder = "wsi_encoder" if part.startswith("slide") else "rna_encoder"
    if part in ("slide", "rna"):
        return f"{encoder}.{_renamed(rest, TRUNK) if part == 'slide' else rest}"
    if part in ("slide_alignment", "rna_alignment"):
        return f"{encoder}.alignment_head.{rest}"
    if part in ("slide_retention", "rna_retention"):
        return f"{encoder}.{_renamed(rest, RETENTION)}"
    return name


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for own, released in table.items():
        if name == own or name.startswith(f"{own}."):
            rest = name[len(own) :]
            if released.endswith(".attn"):
                layer, _, kind = rest[1:].partition(".")
                rest = f".{ATTENTION[layer]}.{kind}"
            return released + rest
    raise KeyError(name)


def from_released(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The tensors called `names` here, out of a released state dict; those it lacks are left out."""
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    return {name: bare[released_name(name)] for name in names if released_name(name) in bare}
