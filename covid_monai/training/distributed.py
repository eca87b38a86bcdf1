# SPDX-License-Identifier: Apache-2.0
"""What several training processes need beside ``DistributedDataParallel``."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events

__all__ = ["BroadcastBuffers"]


class BroadcastBuffers:
    """Give every process the first one's buffers when an evaluator starts, so that all validate one network.

    ``DistributedDataParallel`` keeps parameters equal, but each process updates batch normalisation from its slices.

    Args:
        network: whose buffers are sent.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Listen to the evaluator."""
        engine.add_event_handler(Events.STARTED, self._broadcast)

    def _broadcast(self, engine: Engine) -> None:
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, src=0)
