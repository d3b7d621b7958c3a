from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from lidiv_backend.clicks import Click
from lidiv_backend.learning.choices import learn_choices, pair_loss
from lidiv_backend.learning.snapshot import SnapshotSet, read_snapshot, take_snapshot
from lidiv_backend.learning.store import StoredAnswer, StoredClick, StoredProposal
from lidiv_backend.learning.vault import Vault
from lidiv_backend.model import load_model
from lidiv_backend.predictor import LOOKED_AHEAD, Predictor
from lidiv_backend.records import AnnotatedImage
from tests import tiny
from tests.learning.lab import PROJECT, Lab

CLICK = Click(x=20.0, y=20.0)


def test_pairs_are_rated_as_by_the_formula() -> None:
    rated = torch.tensor([0.3, 2.0, -1.0, 0.5], requires_grad=True)
    expected = np.log1p(np.exp([2.0 - 0.5, 0.3 - 0.5])).mean()
    loss = pair_loss(rated, 3, (1, 0))
    np.testing.assert_allclose(float(loss.detach()), expected, rtol=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert rated.grad is not None
    # The chosen one is pulled up, the rejected ones down, and nobody else is touched.
    assert rated.grad[3] < 0 < min(rated.grad[0], rated.grad[1])
    assert rated.grad[2] == 0
    assert float(pair_loss(rated, 3, ()).detach()) == 0


class Chosen(tiny.PaintedSet):
    """Objects whose masks are what one head of a model makes of a click; another was rejected."""

    def __init__(self, weights: Path, *, rejected: bool) -> None:
        super().__init__(length=4, count=1)
        self._predictor = Predictor.from_pretrained(weights, device="cpu")
        self._rejected = rejected

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = super().__getitem__(index)
        embedding = self._predictor.embed(image.rgb)
        first, *others = self._predictor.predict(embedding, [CLICK])
        item = dataclasses.replace(
            image.objects[0],
            mask=others[0].mask,
            clicks=(CLICK,),
            rejected=(first.head,) if self._rejected else (),
        )
        return dataclasses.replace(image, objects=(item,))


def test_g_learns_what_was_chosen_and_f_stays(tmp_path: Path) -> None:
    weights = tiny.saved(tmp_path / "weights")
    images = Chosen(weights, rejected=True)
    before, examples = load_model(weights), [images[index] for index in range(len(images))]
    assert learn_choices(weights, images, rate=1e-2, seed=0) == 4
    after = load_model(weights)
    assert after.version != before.version
    assert after.description.training["choices"] == 4
    for old, new in zip(before.proposal.parameters(), after.proposal.parameters(), strict=True):
        assert torch.equal(old, new)
    predictor = Predictor.from_pretrained(weights, device="cpu")
    for image in examples:
        best = predictor.predict(predictor.embed(image.rgb), [CLICK])[0]
        assert best.head not in image.objects[0].rejected


def test_without_choices_nothing_is_changed(tmp_path: Path) -> None:
    weights = tiny.saved(tmp_path / "weights")
    before = load_model(weights).version
    assert learn_choices(weights, Chosen(weights, rejected=False), rate=1e-2, seed=0) == 0
    assert load_model(weights).version == before


def answer(task: int, shown: int, steps: int) -> StoredAnswer:
    """Three proposals of the heads 4, 2 and 0, stepped through so often."""
    clicks = [StoredClick(id="0", x=20.0, y=20.0, positive=True, next=False)]
    clicks += [
        StoredClick(id=f"{n}", x=21.0, y=20.0, positive=True, next=True)
        for n in range(1, steps + 1)
    ]
    return StoredAnswer(
        region_id=f"region-{task}-0",
        project=PROJECT,
        task=task,
        first_click="0",
        interactive=True,
        to_name="image",
        label="Cell",
        height=60,
        width=96,
        clicks=tuple(clicks),
        proposals=tuple(StoredProposal(score=0.5, head=head) for head in (4, 2, 0, LOOKED_AHEAD)),
        shown=shown,
        model_version="v",
    )


def test_what_was_stepped_on_from_is_rejected(lab: Lab, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    expected: list[tuple[tuple[int, int], tuple[int, ...]]]
    expected = [((0, 0), ()), ((1, 1), (4,)), ((2, 2), (4, 2)), ((1, 5), (4, 0))]
    # What no head proposed does not say which of them should go first.
    expected.append(((3, 3), ()))
    for task, (place, _) in enumerate(expected):
        lab.store.keep_answer(answer(task, *place))
        lab.accept(task)
    frozen = take_snapshot(
        lab.store, vault, tmp_path / "snapshots", lab.fetch,
        channel="shared", projects=None, holdout=0.0,
    )  # fmt: skip
    assert read_snapshot(tmp_path / "snapshots", frozen.digest) == frozen
    by_name = {mask.name: mask for image in frozen.images for mask in image.masks}
    items = SnapshotSet(frozen.images, vault, name="x")
    objects = {item.name: item for i in range(len(items)) for item in items[i].objects}
    for task, ((shown, _), rejected) in enumerate(expected):
        name = f"{PROJECT}/{1000 + task}/region-{task}-0"
        assert (by_name[name].rejected, by_name[name].stepped) == (rejected, shown > 0)
        assert objects[name].rejected == rejected
