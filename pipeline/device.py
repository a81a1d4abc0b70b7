"""The device that encoders compute on: tiles go there in two pinned buffers by turns, features come back when ready."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from pipeline.contracts.errors import InputError

_BUFFERS = 2  # the host fills one while the device copies the other


class _Event(Protocol):
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class _Passed:
    """The event of a device that is done with everything as soon as it returns."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Features:
    """Features on their way from the device."""

    def __init__(self, values: torch.Tensor, event: _Event) -> None:
        self._values, self._event = values, event

    def array(self) -> np.ndarray:
        """float32 [B, D], as soon as the device has them; the calling thread waits."""
        self._event.synchronize()
        return self._values.numpy()


class Device:
    """One GPU or the CPU.

    Parameters
    ----------
    name : as torch names it; ``auto`` takes a GPU where there is one
    stages_tiles : copy tiles through buffers of its own, and leave normalising the stain to the device. By default a
        GPU does and the CPU does not; the CPU can, so that the path of a GPU is tested without one.
    """

    def __init__(self, name: str = "auto", stages_tiles: bool | None = None) -> None:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and not torch.cuda.is_available():
            raise InputError("config.yaml embedding.device", "torch sees no GPU.", "use auto or cpu.")
        self.torch = torch.device(name)
        self._is_gpu = self.torch.type == "cuda"
        self.stages_tiles = self._is_gpu if stages_tiles is None else stages_tiles
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(_BUFFERS)]
        self._copied = [self._event() for _ in range(_BUFFERS)]
        self._turn = 0

    def __str__(self) -> str:
        return torch.cuda.get_device_name(self.torch) if self._is_gpu else "cpu"

    def send(self, tiles: np.ndarray) -> torch.Tensor:
        """uint8 tiles [B, H, W, 3] as a tensor on the device; `tiles` may be overwritten afterwards on a GPU.

        Waits until the batch before the last has been copied, which bounds how far the host runs ahead of a GPU.
        """
        host = torch.from_numpy(np.ascontiguousarray(tiles))
        if not self.stages_tiles:
            return host.to(self.torch)
        self._turn = (self._turn + 1) % _BUFFERS
        self._copied[self._turn].synchronize()
        if self._buffers[self._turn].numel() < host.numel():
            self._buffers[self._turn] = self._pinned(host.numel(), torch.uint8)
        buffer = self._buffers[self._turn][: host.numel()].view(host.shape)
        buffer.copy_(host)
        sent = buffer.to(self.torch, non_blocking=True, copy=True)
        self._copied[self._turn].record()
        return sent

    def fetch(self, features: torch.Tensor) -> Features:
        """Start bringing features back; the host does not wait."""
        if not self.stages_tiles:
            return Features(features.cpu(), _Passed())
        values = self._pinned(features.numel(), features.dtype).view(features.shape)
        values.copy_(features, non_blocking=True)
        event = self._event()
        event.record()
        return Features(values, event)

    def _pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, pin_memory=self._is_gpu)

    def _event(self) -> _Event:
        return torch.cuda.Event() if self._is_gpu else _Passed()
