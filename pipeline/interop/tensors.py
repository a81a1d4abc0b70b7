"""``.pt`` files: one tensor, as the family of tools around CLAM stores a slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.contracts.files import whole_file


def write_tensor(path: str | Path, values: np.ndarray) -> None:
    """Write a float32 tensor [N, D] that ``torch.load(weights_only=True)`` reads."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    with whole_file(path) as part, open(part, "wb") as handle:  # through a handle the file's name stays out of it
        torch.save(tensor, handle)
