"""The processes that fit one model together: exchange of values, and of errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

Floats = NDArray[np.float64]
T = TypeVar("T")


def attempt(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Return (the answer, the error), one of them None."""
    try:
        return compute(), None
    except Exception as error:
        return None, error


class Processes:
    """The processes of a torch.distributed group, which fit one model together.

    If `group` is None, this process is alone. A method is called by all of them or by none. An
    error in one is raised in every process, so that none waits for it.
    """

    def __init__(self, group: Any | None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("group must include this process; got one without it")

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in rank order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def run_in_all(self, compute: Callable[[], T]) -> T:
        """Return what compute gives here; raise if it raises in any process."""
        answer, error = attempt(compute)
        messages = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RuntimeError(f"process {rank} of the group failed: {message}")
        return answer  # type: ignore[return-value]

    def run_in_first(self, compute: Callable[[], T]) -> T:
        """Return in every process what compute gives in process 0."""
        if self.group is None:
            return compute()
        answer, error = attempt(compute) if self.rank == 0 else (None, None)
        box: list[Any] = [answer, None if error is None else str(error)]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, 0), group=self.group)
        if error is not None:
            raise error
        if box[1] is not None:
            raise RuntimeError(f"process 0 of the group failed: {box[1]}")
        result: T = box[0]
        return result

    def total(self, add_to: Callable[[Floats], None], size: int) -> Floats:
        """Return the sum over processes of what add_to adds to `size` zeros, by one all-reduce."""
        sums = np.zeros(size + 1)
        _, error = attempt(lambda: add_to(sums[:-1]))
        if error is not None:
            sums[:] = 0.0
            sums[-1] = 1.0
        if self.group is not None:
            sums = self._all_reduced(sums)
        if error is not None:
            raise error
        if sums[-1] > 0:
            raise RuntimeError("another process of the group failed; its own error says why")
        return sums[:-1]

    def _all_reduced(self, sums: Floats) -> Floats:
        cpu = "cpu" in device_types(dist.get_backend_config(self.group))
        device = torch.device("cpu") if cpu else torch.device("cuda", torch.cuda.current_device())
        tensor = torch.from_numpy(sums).to(device)
        dist.all_reduce(tensor, group=self.group)
        result: Floats = tensor.cpu().numpy()
        return result


def device_types(config: str) -> set[str]:
    """Return the device types that a group communicates for.

    config: a backend configuration such as "cpu:gloo,cuda:nccl".
    """
    return {pair.partition(":")[0] for pair in config.split(",")}


def spelled(value: Any) -> str:
    """Return a setting as a short text, which is the same for equal values."""
    text = _text(value)
    return (
        text
        if len(text) <= 200
        else f"{text[:60]}... ({hashlib.sha256(text.encode()).hexdigest()[:16]})"
    )


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


def check_agreed(settings: Sequence[dict[str, str]]) -> None:
    """Raise the same error in every process if one of their settings differs."""
    for name in sorted({name for one in settings for name in one}):
        values = [one.get(name, "nothing") for one in settings]
        if len(set(values)) > 1:
            raise ValueError(
                f"{name} must be the same in every process of the group; got {', '.join(values)}"
            )
