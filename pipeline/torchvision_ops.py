"""Make ``import torchvision`` work where its compiled operators do not fit the installed torch."""

from __future__ import annotations

import sys

import torch

# The registry's torchvision is built for CUDA. Beside a CPU torch its operators do not load, and its Python
# part then stops at registering shapes for operators that nobody defined. Their bare definitions are all it
# needs: timm uses none of them, and calling one still fails honestly.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a definition lives as long as its library object


def ensure_torchvision() -> str:
    """Import torchvision; call this before any import of timm.

    Returns ``native`` when its compiled operators loaded, ``python-only`` when only its Python part is
    usable.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [key for key in sys.modules if key.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _libraries.append(library)
        for schema in _SCHEMAS:
            library.define(schema)
        import torchvision
    return "native" if torchvision.extension._has_ops() else "python-only"
