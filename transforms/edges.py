# SPDX-License-Identifier: Apache-2.0
"""The contour of a lesion mask, the target of Inf-Net's edge branch."""

from collections.abc import Hashable, Mapping

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

__all__ = ["EdgeMap", "EdgeMapD", "EdgeMapDict", "EdgeMapd"]


def _cross_max(x: torch.Tensor) -> torch.Tensor:
    """Maximum over each pixel and its face neighbours; ``x`` is (C, H, W) or (C, X, Y, Z), the frame is not padded."""
    pool = F.max_pool2d if x.ndim == 3 else F.max_pool3d
    axes = range(x.ndim - 1)
    kernels = [[3 if i == axis else 1 for i in axes] for axis in axes]
    pooled = [pool(x, kernel, stride=1, padding=[k // 2 for k in kernel]) for kernel in kernels]
    return torch.stack(pooled).amax(0)


class EdgeMap(Transform):
    """Contour of a binary or label mask: 1 on it, 0 elsewhere.

    A pixel is on the contour when a pixel of another label lies near it, in steps to face neighbours:
    within ``ceil(width / 2)`` steps for a labelled pixel (the inner side) and within ``width // 2`` steps for a
    background pixel (the outer side). So 1 is the inner border alone and the default 2 is one pixel on each side, as in
    the edge images of COVID-SemiSeg (Fan et al., IEEE TMI 2020; Dice 0.999 against them). Where two labels touch, both
    sides are inner sides. The frame of the image is no contour. For the edge of the whole lesion give the binary mask.

    Make the edge from the mask as augmented: an edge map resampled by itself no longer lies on its mask.

    Args:
        width: width of the contour in pixels, at least 1.

    Raises:
        ValueError: ``width`` is below 1, or not a whole number.

    Example:
        >>> EdgeMap()(torch.tensor([[[0, 0, 1, 1, 1]]]))
        tensor([[[0., 1., 1., 0., 0.]]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, width: int = 2) -> None:
        if int(width) != width or width < 1:
            raise ValueError(f"EdgeMap: width is {width}; give a whole number of pixels, 1 or more")
        self.width = int(width)

    def __call__(self, mask: NdarrayOrTensor) -> NdarrayOrTensor:
        """Make the contour.

        Args:
            mask: (C, H, W) or (C, X, Y, Z), whole numbers, 0 is background; each channel for itself.

        Returns:
            float32 array of the same type and shape, 0 or 1.

        Raises:
            ValueError: other shapes, or values between the labels (a mask that was interpolated).
        """
        x = convert_to_tensor(mask, dtype=torch.float32, track_meta=False)
        if x.ndim not in (3, 4):
            raise ValueError(f"EdgeMap: mask has shape {tuple(x.shape)}; give (C, H, W) or (C, X, Y, Z)")
        if not torch.equal(x, x.round()):
            raise ValueError("EdgeMap: mask has values between its labels; resample masks with mode 'nearest'")
        low, high = -x, x
        near = []
        for _ in range((self.width + 1) // 2):
            low, high = _cross_max(low), _cross_max(high)
            near.append(high > -low)
        inner = near[-1] & (x != 0)
        edge = inner | (near[self.width // 2 - 1] & (x == 0)) if self.width > 1 else inner
        return convert_to_dst_type(edge, mask, dtype=torch.float32)[0]


class EdgeMapd(MapTransform):
    """Dictionary-based version of :py:class:`EdgeMap`: writes the contour to a new key and leaves the mask.

    Args:
        keys: the masks.
        edge_key: where the contour goes; one name, so ``keys`` names one mask.
        width: width of the contour in pixels.
        allow_missing_keys: do not raise when the mask is missing.

    Raises:
        ValueError: several ``keys``, or ``edge_key`` among them.
    """

    backend = EdgeMap.backend

    def __init__(
        self, keys: KeysCollection, edge_key: str = "edge", width: int = 2, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1 or edge_key in self.keys:
            raise ValueError(
                f"EdgeMapd: keys are {self.keys} and edge_key is {edge_key!r}; give one mask, another name"
            )
        self.edge_key = edge_key
        self.edge_map = EdgeMap(width)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the contour of the mask to a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.edge_key] = self.edge_map(d[key])
        return d


EdgeMapD = EdgeMapDict = EdgeMapd
