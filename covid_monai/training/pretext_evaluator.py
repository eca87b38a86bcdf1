# SPDX-License-Identifier: Apache-2.0
"""How well a pre-trained network rebuilds slices that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.engines import Evaluator

from covid_monai.losses import InpaintingLoss
from covid_monai.training.coach_trainer import Inpainting, random_masks_like
from covid_monai.transforms import RandCellMask

__all__ = ["PretextEvaluator", "mask_overlap"]


class PretextEvaluator(Evaluator):
    """How well slices that were not trained on are rebuilt, under random masks and under the coach's.

    Metrics, means over slices of the squared error over erased pixels: ``val_error_random``; ``val_error_mean`` for
    filling the same holes with the mean of what is left of the region that masks erase in; with a coach
    ``val_error_coach``, and ``val_mask_overlap``, the mean Jaccard index of the areas erased in two different slices
    (1: one fixed pattern), beside ``val_mask_overlap_random`` of the random masks. The same random masks are drawn in
    every run. A slice of which nothing is erased does not count.

    Args:
        device: where to evaluate.
        val_data_loader: batches that ``prepare_batch`` understands, of two slices or more.
        task: the inpainting to evaluate.
        prepare_batch: as in :class:`PretextTrainer`.
        seed: of the random masks.
        val_handlers: ignite handlers; the output is a dict of ``image``, ``random_mask``, ``random_pred`` and with a
            coach ``coach_mask``, ``coach_pred``, each (B, 1, H, W).
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Any,
        task: Inpainting,
        prepare_batch: Callable[..., torch.Tensor],
        seed: int = 0,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            prepare_batch=prepare_batch,
            val_handlers=val_handlers,
            decollate=False,
        )
        self.task = task
        self.seed = seed
        self._values: dict[str, list[torch.Tensor]] = {}

    @torch.no_grad()
    def _iteration(self, engine: Any, batchdata: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        task: Inpainting = engine.task
        if engine.state.iteration == 1:
            engine._values = {}
            masks = task.random_masks
            engine._masks = RandCellMask(masks.keep_fraction, masks.cell, masks.within).set_random_state(engine.seed)
        inputs = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        image = inputs[:, :1]
        task.network.eval()

        def rebuild(name: str, mask: torch.Tensor) -> dict[str, torch.Tensor]:
            map_ = task.inferer(inputs * mask, task.network).float()
            engine._record(f"val_error_{name}", task.loss.erased_error(map_, image, mask))
            return {f"{name}_mask": mask, f"{name}_pred": task.loss.reconstruction(map_)}

        mask = random_masks_like(inputs, engine._masks)
        allowed = task.allowed(inputs)
        left = mask * _pixels(allowed, task.random_masks.cell, image)
        filled = (image * left).sum((2, 3), keepdim=True) / left.sum((2, 3), keepdim=True).clamp(min=1)
        filled = filled.expand_as(image)
        engine._record("val_error_mean", InpaintingLoss(clamp=task.loss.clamp).erased_error(filled, image, mask))
        output = {"image": image, **rebuild("random", mask)}
        if task.coach is not None:
            coach_mask = task.inferer(inputs, task.coach.masks, allowed=allowed)
            output |= rebuild("coach", coach_mask)
            if len(mask) > 1:
                engine._record("val_mask_overlap", mask_overlap(coach_mask))
                engine._record("val_mask_overlap_random", mask_overlap(mask))
        return output

    def _record(self, name: str, values: torch.Tensor) -> None:
        """Keep the mean over all slices so far that have a value as the metric."""
        self._values.setdefault(name, []).append(values[~values.isnan()].cpu())
        self.state.metrics[name] = float(torch.cat(self._values[name]).mean())


def _pixels(cells: torch.Tensor, cell: int, image: torch.Tensor) -> torch.Tensor:
    """Cells (B, 1, h, w) as zeros and ones on the pixels of the image, (B, 1, H, W)."""
    pixels = cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return pixels[..., : image.shape[2], : image.shape[3]].to(image.dtype)


def mask_overlap(mask: torch.Tensor) -> torch.Tensor:
    """Jaccard index of the erased areas of each two slices, (B (B - 1) / 2,), from masks (B, 1, H, W), 0 erased."""
    erased = (mask < 0.5).flatten(1).float()
    both = erased @ erased.T
    size = erased.sum(1)
    overlap = both / (size[:, None] + size[None] - both).clamp(min=1)
    first, second = torch.triu_indices(len(mask), len(mask), offset=1)
    return overlap[first, second]
