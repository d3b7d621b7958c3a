"""What an interaction begins with: nothing, a rectangle, or a region that was accepted before.

Label Studio sends points without the rectangles that were drawn before them, so the rectangles that
wait for an answer are remembered. What an interaction began with is decided at its first click and
kept: a draft that is saved in its middle must not change it. Both are kept where every process and
replica finds them, since the next click may come to another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.caching import BoundedCache
from lidiv_backend.clicks import Click
from lidiv_backend.labelstudio.interaction import Start
from lidiv_backend.labelstudio.options import ProjectOptions
from lidiv_backend.labelstudio.requests import Task
from lidiv_backend.labelstudio.results import (
    PlacedClick,
    Prompt,
    SavedRegion,
    find_saved_region,
    saved_region_ids,
)
from lidiv_backend.predictor import Proposal

#: Seconds after which a rectangle that was not touched is forgotten, and what an interaction began
#: with.
BOX_SECONDS, BEGUN_SECONDS = 600.0, 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionKey:
    """What all requests of one interaction have in common.

    Parameters
    ----------
    project
        As Label Studio sends it.
    task
        Number of the task; None if the request did not say.
    first_click
        Id of the first point, or of the rectangle.
    """

    project: str
    task: int | None
    first_click: str


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What an interaction began with.

    Parameters
    ----------
    box
        The rectangle that its first click lies in, or None.
    others
        Further rectangles that were waiting; they are answered again beside it.
    region
        The accepted region that its first click lies in, or None.
    """

    box: Prompt | None = None
    others: tuple[Prompt, ...] = ()
    region: SavedRegion | None = None


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What is kept of a beginning.

    Parameters
    ----------
    box, others
        As in `Beginning`.
    region
        Id of the accepted region, or empty.
    """

    box: Prompt | None = None
    others: tuple[Prompt, ...] = ()
    region: str = ""


class Keeper(Protocol):
    """Keeps rectangles and beginnings where all processes and replicas see them."""

    def keep_boxes(self, project: str, task: int | None, boxes: tuple[Prompt, ...]) -> None:
        """Keep the rectangles of an annotator, instead of those that this one had before.

        Label Studio does not say whose they are. But it sends all of an annotator's each time, so
        that what has a rectangle in common is the same annotator's. None at all were taken away by
        whoever had some, if that is clear.
        """

    def waiting_boxes(
        self, project: str, task: int | None, *, accepted: frozenset[str] = frozenset()
    ) -> tuple[tuple[Prompt, ...], ...]:
        """Give the rectangles of a task that are not forgotten yet, each annotator's apart.

        Those that were answered with a region in `accepted` wait no longer. Label Studio says
        nothing when they go.
        """

    def keep_begun(self, key: InteractionKey, begun: Begun) -> Begun:
        """Keep a beginning, and give the one that counts: somebody else's, who came before."""

    def begun(self, key: InteractionKey) -> Begun | None:
        """Give what an interaction began with; None if it is new."""


class Beginnings:
    """Knows what interactions began with; for many threads.

    Parameters
    ----------
    keeper
        What all processes have in common.
    max_bytes
        What may be remembered here of accepted regions.
    """

    def __init__(self, keeper: Keeper, *, max_bytes: int) -> None:
        self._keeper = keeper
        self._begun: BoundedCache[InteractionKey, Beginning] = BoundedCache(max_bytes=max_bytes)

    def keep_boxes(self, project: str, task: Task, boxes: tuple[Prompt, ...]) -> None:
        """Remember the rectangles that an annotator has now; none where they were taken away."""
        self._keeper.keep_boxes(project, task.id, boxes)

    def of(
        self,
        key: InteractionKey,
        task: Task,
        prompt: Prompt,
        options: ProjectOptions,
        *,
        height: int,
        width: int,
    ) -> Beginning:
        """Tell what an interaction began with.

        Parameters
        ----------
        key
            The interaction.
        task
            The task, with its drafts and annotations.
        prompt
            The clicks.
        options
            What the project asks for.
        height, width
            Of the image, in pixels.
        """
        if not (key.first_click and (options.rectangles or options.refine_accepted)):
            return Beginning()
        return self._begun.get_or_compute(
            key,
            lambda: self._recall(key, task, prompt, options, height=height, width=width),
            size_of=lambda found: 1000 if found.region is None else 1000 + found.region.mask.nbytes,
        )

    def _recall(
        self,
        key: InteractionKey,
        task: Task,
        prompt: Prompt,
        options: ProjectOptions,
        *,
        height: int,
        width: int,
    ) -> Beginning:
        begun = self._keeper.begun(key)
        if begun is None:
            found = self._find(key, task, prompt, options, height=height, width=width)
            mine = Begun(
                box=found.box,
                others=found.others,
                region="" if found.region is None else found.region.id,
            )
            begun = self._keeper.keep_begun(key, mine)
            if begun == mine:
                return found
        region = None
        if begun.region:
            region = find_saved_region(task, prompt, height=height, width=width, id=begun.region)
        return Beginning(box=begun.box, others=begun.others, region=region)

    def _find(
        self,
        key: InteractionKey,
        task: Task,
        prompt: Prompt,
        options: ProjectOptions,
        *,
        height: int,
        width: int,
    ) -> Beginning:
        if options.rectangles:
            size = {"height": height, "width": width}
            click = prompt.clicks[0].in_pixels(**size)
            waiting = self._keeper.waiting_boxes(
                key.project, key.task, accepted=saved_region_ids(task)
            )
            around = [
                (each.box.in_pixels(**size).area, group, number)
                for group in waiting
                for number, each in enumerate(group)
                if each.box is not None
                and each.target == prompt.target
                and each.box.in_pixels(**size).contains(click.x, click.y)
            ]
            if around:
                _, group, number = min(around, key=lambda found: found[0])
                return Beginning(box=group[number], others=(*group[:number], *group[number + 1 :]))
        if options.refine_accepted:
            return Beginning(region=find_saved_region(task, prompt, height=height, width=width))
        return Beginning()


def start_from_region(region: SavedRegion, clicks: Sequence[PlacedClick]) -> Start:
    """Begin with an accepted region.

    Parameters
    ----------
    region
        The region.
    clicks
        Those that once led to it; without any, one in its middle stands for them.
    """
    height, width = region.mask.shape
    prompts = tuple(click.in_pixels(height=height, width=width) for click in clicks)
    if not any(click.positive for click in prompts):
        prompts = (_innermost(region.mask), *prompts)
    digest = hashlib.blake2b(np.packbits(region.mask).tobytes(), digest_size=16).hexdigest()
    return Start(
        key=f"region {digest} {prompts}",
        clicks=prompts,
        proposals=(Proposal(mask=region.mask, score=1.0, head=0),),
        note="a copy of the region beneath",
    )


def _innermost(mask: NDArray[np.bool_]) -> Click:
    """A click as far from the mask's boundary as can be; the image's edge is boundary."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return Click(x=float(column), y=float(row))
