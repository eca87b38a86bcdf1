# SPDX-License-Identifier: Apache-2.0
"""Two real processes over gloo."""

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from covid_monai.training import BroadcastBuffers


def validate(rank: int, folder: str) -> None:
    """What each process does: hold other buffers, start an evaluator, save what it holds then."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = nn.BatchNorm1d(3)
    network.running_mean.fill_(rank + 1.0)
    network.weight.data.fill_(rank + 1.0)
    evaluator = Engine(lambda engine, batch: None)
    BroadcastBuffers(network).attach(evaluator)
    evaluator.run([0])
    torch.save(network.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_validate_with_the_buffers_of_the_first(tmp_path: Path):
    torch.multiprocessing.spawn(validate, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["running_mean"].tolist() == second["running_mean"].tolist() == [1.0, 1.0, 1.0]
    assert second["weight"].tolist() == [2.0, 2.0, 2.0]  # parameters are not its concern
