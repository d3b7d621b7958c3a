"""Draws on the device, as the networks take them."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Subset

from lidiv_backend.training.draws import Draw, Draws
from lidiv_backend.training.stopping import ignore_interrupts


class Batch:
    """I images with T objects each: B = I * T examples, one after the other.

    Parameters
    ----------
    draws
        I of them, all of one size.
    device
        Where to put them.
    """

    def __init__(self, draws: list[Draw], device: torch.device) -> None:
        masks = torch.cat([draw["masks"] for draw in draws])
        valid = torch.cat([draw["valid"] for draw in draws])
        #: Which image each example is of.
        self.owner_of = [i for i, draw in enumerate(draws) for _ in range(len(draw["masks"]))]
        self.owner = torch.tensor(self.owner_of, device=device)
        #: Number of each picture among the views; -1 where there are none.
        self.views = [draw["view"] for draw in draws]
        #: uint8 (3, H, W) each, as they were drawn.
        self.pictures = [draw["rgb"] for draw in draws]
        #: bool (H, W) each: the objects, and what counts neither way.
        self.objects: list[NDArray[np.bool_]] = list((masks & valid).numpy())
        self.ignored: list[NDArray[np.bool_]] = list((~valid).numpy())
        #: Of each object, those of the annotator who made its mask; empty where not known.
        self.clicks = [clicks for draw in draws for clicks in draw["clicks"]]
        rgb = torch.stack(self.pictures).to(device).float().div_(255)
        #: float (I, 3, H, W) in [0, 1], and float (B, 1, H, W) of 0 and 1.
        self.rgb = rgb.contiguous(memory_format=torch.channels_last)
        self.truth = masks.unsqueeze(1).to(device).float()
        self.valid = valid.unsqueeze(1).to(device).float()

    def __len__(self) -> int:
        return len(self.objects)

    def hard(self, masks: Tensor) -> NDArray[np.bool_]:
        """Masks (B, N, h, w) in [0, 1] as bool (B, N, H, W), thresholded at the images' size."""
        size = self.truth.shape[-2:]
        full = F.interpolate(masks.float(), size, mode="bilinear", align_corners=False)
        return (full > 0.5).cpu().numpy()


def load_draws(draws: Draws, wanted: range, *, images: int, workers: int) -> Iterable[list[Draw]]:
    """Read draws, so many images at a time.

    Parameters
    ----------
    draws
        Where they come from.
    wanted
        Which of them, in this order.
    images
        For each batch; the last one may have fewer.
    workers
        Processes that read; 0 for this one.
    """
    context = None
    if workers:
        context = get_context("forkserver")
        # Otherwise each imports torch on its own, one after the other.
        context.set_forkserver_preload([__name__])
    loader: Iterable[list[Draw]] = DataLoader(
        Subset(draws, wanted),
        batch_size=images,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context=context,
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_interrupts,
        # Its own: what is random in a run does not depend on how it is read.
        generator=torch.Generator(),
    )
    return loader
