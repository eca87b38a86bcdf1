# SPDX-License-Identifier: Apache-2.0
"""What several keys of a dictionary must have in common."""

from collections.abc import Hashable, Mapping, Sequence

from monai.config.type_definitions import NdarrayOrTensor

__all__ = ["common_size"]


def common_size(
    transform: object, data: Mapping[Hashable, NdarrayOrTensor], keys: Sequence[Hashable]
) -> tuple[int, ...] | None:
    """Spatial size of channel-first images; None without keys.

    Args:
        transform: who asks, named in the fault.
        data: has the images.
        keys: of the images.

    Raises:
        ValueError: images of different sizes.
    """
    sizes = {tuple(data[key].shape[1:]) for key in keys}
    if len(sizes) > 1:
        name = type(transform).__name__
        raise ValueError(f"{name}: {keys} have spatial sizes {sorted(sizes)}; give images of one size")
    return next(iter(sizes), None)
