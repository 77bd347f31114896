"""Several processes that train together."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn


@dataclass(frozen=True)
class Processes:
    """Processes that train together, each on its part of a batch's tasks; by default just this one."""

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> Processes:
        """Those that ``torchrun`` started, over gloo."""
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        # While one makes features or validates, the others wait.
        distributed.init_process_group("gloo", timeout=datetime.timedelta(hours=4))
        return cls(distributed.get_rank(), distributed.get_world_size())

    def leave(self) -> None:
        """End what `joined` began."""
        if self.count > 1:
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    def mean(self, value: float) -> float:
        """The mean of each one's value."""
        if self.count == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(tensor)
        return float(tensor[0]) / self.count

    def share(self, tasks: NDArray[np.int64]) -> NDArray[np.int64]:
        """This one's part of a batch's tasks; all of them if there are fewer than processes."""
        return tasks[self.rank :: self.count] if len(tasks) >= self.count else tasks

    def together(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
