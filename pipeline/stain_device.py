"""Repaint tiles on the encoder's device: the closed form of `stain_transfer` in torch, within the encoder's batch."""

from __future__ import annotations

import torch

from pipeline.contracts.stains import StainColours
from pipeline.stain_transfer import Coefficients


class DeviceTransfer:
    """Repaints uint8 tiles that are on `device` already; None as the source leaves them as they are.

    The operations and their order are those of `stain_kernel`, in float32 whatever autocast says, but for the device's
    own power of 2: a value on the border of two grey levels may fall to either side. Nothing is copied from the host
    and nothing waits for the device: the numbers travel as arguments of the kernels.
    """

    def __init__(self, source: StainColours | None, target: StainColours, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._numbers = None if source is None else Coefficients.of(source, target)
        if self._numbers is not None:
            self._density = torch.from_numpy(self._numbers.density).to(self.device)

    @torch.no_grad()
    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Repaint uint8 [B, H, W, 3], in any memory order, into a new contiguous tensor of that shape.

        ``.permute(0, 3, 1, 2)`` of the result is [B, 3, H, W] in channels-last order, without a copy. A source of None
        returns `tiles` itself.
        """
        if self._numbers is None:
            return tiles
        linear, offset, paint = self._numbers.linear, self._numbers.offset, self._numbers.paint
        density = [self._density[channel][tiles[..., channel].int()] for channel in range(3)]
        first, second = (
            density[0] * float(row[0]) + density[1] * float(row[1]) + density[2] * float(row[2]) - float(less)
            for row, less in zip(linear, offset, strict=True)
        )
        del density
        cosine = float(self._numbers.cosine)
        haematoxylin = (first + second.clamp(max=0) * cosine).clamp_(min=0)
        eosin = (second + first.clamp(max=0) * cosine).clamp_(min=0)
        painted = torch.empty(tiles.shape, dtype=torch.uint8, device=tiles.device)
        for channel, white in enumerate(self._numbers.white):
            value = haematoxylin * float(paint[0, channel]) + eosin * float(paint[1, channel])
            painted[..., channel] = value.exp2_().mul_(float(white)).add_(0.5)
        return painted
