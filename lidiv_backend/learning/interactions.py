"""Recorded clicks with their images and accepted masks, out of the database."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lidiv_backend.evaluation.replay import Interaction
from lidiv_backend.learning.snapshot import Fetch, take_snapshot
from lidiv_backend.learning.store import Store
from lidiv_backend.learning.vault import Vault


def recorded_interactions(
    store: Store,
    vault: Vault,
    fetch: Fetch,
    *,
    projects: Collection[str] | None,
    tell: Callable[[str], None],
) -> Iterator[Interaction]:
    """Give every accepted mask that was made by clicks, with these clicks.

    Masks drawn by hand are left out, and clicks that only asked for the next proposal.

    Parameters
    ----------
    store, vault, fetch, projects
        As in `take_snapshot`.
    tell
        Called with what could not be used, a sentence each.
    """
    with tempfile.TemporaryDirectory() as folder:
        snapshot = take_snapshot(
            store, vault, Path(folder), fetch, channel="replay", projects=projects, holdout=0.0
        )
    for problem in snapshot.problems:
        tell(problem)
    for image in snapshot.images:
        for mask in image.masks:
            if mask.clicks:
                yield Interaction(
                    name=mask.name,
                    project=mask.name.partition("/")[0],
                    label=mask.label,
                    rgb=vault.image(image.image),
                    clicks=mask.clicks,
                    accepted=vault.mask(mask.mask),
                )
