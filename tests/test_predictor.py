"""The predictor's contract, with tiny networks of random weights."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lidiv_backend.ahead import points_beside
from lidiv_backend.clicks import Click, pack_clicks
from lidiv_backend.devices import choose_device
from lidiv_backend.errors import BadClickError, BadImageError, BadRequestError
from lidiv_backend.model import InferenceConfig, ModelDescription
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.predictor import (
    LOOKED_AHEAD,
    EmbeddingCaches,
    Logits,
    Predictor,
    Proposal,
)
from lidiv_backend.zoom import Window
from tests import tiny
from tests.tiny import same

SMALL = InferenceConfig(longest_side=64, max_pixels=None, merge_iou=0.9)
CLICKS = [Click(x=20, y=10), Click(x=31, y=25), Click(x=3, y=3, positive=False)]


@pytest.fixture(scope="module")
def paper() -> Predictor:
    """The paper's networks without an encoder, at full resolution."""
    return tiny.predictor(tiny.description(heads=6))


@pytest.fixture(scope="module")
def default() -> Predictor:
    """The pyramid, seen at 64 pixels."""
    return tiny.predictor(tiny.description(pyramid=True, previous=True, inference=SMALL))


def counted(predictor: Predictor) -> list[int]:
    """Grows by one with every pass of f."""
    passes: list[int] = []
    predictor.model.proposal.register_forward_hook(lambda *_: passes.append(1))
    return passes


class TestProposals:
    @pytest.mark.parametrize("which", ["paper", "default"])
    @pytest.mark.parametrize("size", [(30, 40), (1, 1), (3, 2000), (2000, 3), (97, 203)])
    @pytest.mark.parametrize("count", [1, 3])
    def test_masks_of_the_images_size_best_first(
        self, which: str, size: tuple[int, int], count: int, request: pytest.FixtureRequest
    ) -> None:
        predictor: Predictor = request.getfixturevalue(which)
        height, width = size
        clicks = [
            Click(x=min(c.x, width - 1), y=min(c.y, height - 1), positive=c.positive)
            for c in CLICKS[:count]
        ]
        proposals = predictor.predict(predictor.embed(tiny.photo(*size)), clicks)
        assert 1 <= len(proposals) <= predictor.model.description.proposal.heads
        for proposal in proposals:
            assert proposal.mask.dtype == np.bool_
            assert proposal.mask.shape == size
            assert 0 <= proposal.score <= 1
        scores = [proposal.score for proposal in proposals]
        assert scores == sorted(scores, reverse=True)
        assert len({proposal.head for proposal in proposals}) == len(proposals)

    def test_a_mask_that_was_asked_for_is_kept_in_an_eighth_of_its_size(self) -> None:
        values = tiny.photo(60, 80).astype(np.float32)[..., 0] - 128
        whole = Window(left=0, top=0, width=799, height=600)
        proposal = Proposal(mask=Logits(values, whole, height=600, width=799), score=0.5, head=0)
        assert proposal.nbytes == 600 * 799 // 8
        first = proposal.mask
        enlarged = cv2.resize(values, (799, 600), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(first, enlarged > 0)
        assert proposal.nbytes == -(-600 * 799 // 8)
        # What the caller does to it is no matter of the next one's.
        first[:] = False
        np.testing.assert_array_equal(proposal.mask, enlarged > 0)
        assert proposal.mask.dtype == np.bool_

    def test_there_is_nothing_outside_of_a_window(self) -> None:
        window = Window(left=10, top=20, width=30, height=15)
        logits = Logits(np.ones((5, 10), np.float32), window, height=60, width=80)
        mask = Proposal(mask=logits, score=0.5, head=0).mask
        assert mask.shape == (60, 80)
        assert mask.sum() == mask[20:35, 10:40].sum() == 30 * 15

    def test_a_proposal_does_not_hold_on_to_what_it_was_cut_from(self) -> None:
        heads = np.ones((6, 60, 80), np.float32)
        window = Window(left=0, top=0, width=80, height=60)
        proposal = Proposal(mask=Logits(heads[2], window, height=60, width=80), score=0.5, head=2)
        assert proposal.nbytes == heads[2].nbytes
        heads[2] = -1
        assert proposal.mask.all()

    def test_clicks_change_what_is_proposed(self, paper: Predictor, default: Predictor) -> None:
        for predictor in (paper, default):
            image = predictor.embed(tiny.photo(40, 48))
            first = predictor.predict(image, CLICKS[:1])
            other = predictor.predict(image, [Click(x=40, y=35)])
            assert any((p.mask != q.mask).any() for p, q in zip(first, other, strict=False))

    def test_bfloat16_gives_proposals_too(self) -> None:
        about = tiny.description(pyramid=True, previous=True, inference=SMALL)
        predictor = tiny.predictor(about, precision="bfloat16")
        proposals = predictor.predict(predictor.embed(tiny.photo(30, 40)), CLICKS)
        assert proposals[0].mask.shape == (30, 40)


class TestPaper:
    def test_is_f_at_the_argmax_of_g_and_nothing_else(self, paper: Predictor) -> None:
        rgb = tiny.photo(30, 40)
        proposals = paper.predict(paper.embed(rgb), CLICKS)
        f, g = paper.model.proposal, paper.model.selection
        assert g is not None
        x = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
        prompt = Prompt(clicks=pack_clicks([CLICKS]))
        with torch.no_grad():
            masks = f(f.project(x, ()), prompt).logits.sigmoid()
            rated = g(x, prompt, masks, ())[0]
        probabilities = (rated.exp() / rated.exp().sum()).tolist()
        best = int(rated.argmax())
        assert proposals[0].head == best
        assert (proposals[0].mask == (masks[0, best] > 0.5).numpy()).all()
        # All M of them, with g's softmax, nothing merged.
        assert sorted(proposal.head for proposal in proposals) == list(range(6))
        for proposal in proposals:
            assert proposal.score == pytest.approx(probabilities[proposal.head], abs=1e-5)
            assert (proposal.mask == (masks[0, proposal.head] > 0.5).numpy()).all()
        assert sum(proposal.score for proposal in proposals) == pytest.approx(1)

    def test_does_not_look_at_the_previous_mask(self, paper: Predictor) -> None:
        image = paper.embed(tiny.photo(30, 40))
        passes = counted(paper)
        plain = paper.predict(image, CLICKS)
        assert len(passes) == 1  # nothing is replayed
        assert same(plain, paper.predict(image, CLICKS, previous=np.ones((30, 40), bool)))

    def test_more_than_a_megapixel_is_shrunk(self) -> None:
        predictor = tiny.predictor(tiny.description(inference=InferenceConfig(max_pixels=1200)))
        image = predictor.embed(tiny.photo(60, 80))
        assert image.rgb.shape == (1, 3, 30, 40)
        assert predictor.embed(tiny.photo(30, 40)).rgb.shape == (1, 3, 30, 40)
        assert predictor.embed(tiny.photo(10, 12)).rgb.shape == (1, 3, 10, 12)

    @pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1), (2, 40_000), (999, 1001)])
    def test_strips_stay_within_the_limit(self, size: tuple[int, int]) -> None:
        predictor = tiny.predictor(
            tiny.description(ranked=True, heads=1, inference=InferenceConfig(max_pixels=5000))
        )
        image = predictor.embed(np.zeros((*size, 3), np.uint8))
        assert image.rgb.shape[-1] * image.rgb.shape[-2] <= 5000
        (proposal,) = predictor.predict(image, [Click(x=0, y=0)])
        assert proposal.mask.shape == size

    def test_without_g_the_outputs_keep_their_order(self) -> None:
        predictor = tiny.predictor(tiny.description(ranked=True))
        proposals = predictor.predict(predictor.embed(tiny.photo(20, 20)), CLICKS[2:])
        assert [proposal.head for proposal in proposals] == [0, 1, 2, 3]
        assert [proposal.score for proposal in proposals] == [0.5, 0.25, 0.125, 0.0625]


class TestMerging:
    @pytest.fixture
    def predictor(self, monkeypatch: pytest.MonkeyPatch) -> Predictor:
        """Its f proposes what the test says."""
        inference = InferenceConfig(merge_iou=0.75)
        predictor = tiny.predictor(tiny.description(inference=inference, heads=5))
        self.masks = np.zeros((5, 4, 10), bool)
        self.scores = np.zeros(5, np.float32)
        monkeypatch.setattr(
            predictor,
            "_propose",
            lambda *_: (
                torch.from_numpy(self.masks * 2.0 - 1.0).float(),
                torch.from_numpy(self.scores),
            ),
        )
        return predictor

    def heads(self, predictor: Predictor) -> list[int]:
        image = predictor.embed(tiny.photo(4, 10))
        return [proposal.head for proposal in predictor.predict(image, [Click(x=1, y=1)])]

    def test_of_near_duplicates_the_better_one_stays(self, predictor: Predictor) -> None:
        for head, width in enumerate((8, 6, 5, 2, 0)):
            self.masks[head, :, :width] = True
        # IoU: 0-1 0.75, 1-2 0.83, 0-2 0.625; mask 4 is empty.
        self.scores[:] = (0.9, 0.8, 0.7, 0.6, 0.95)
        assert self.heads(predictor) == [0, 2, 3]
        self.scores[:] = (0.7, 0.8, 0.9, 0.6, 0.95)
        assert self.heads(predictor) == [2, 0, 3]
        self.scores[:] = (0.8, 0.9, 0.7, 0.6, 0.1)
        assert self.heads(predictor) == [1, 3]

    def test_if_all_are_empty_the_best_is_shown(self, predictor: Predictor) -> None:
        self.scores[:] = (0.1, 0.2, 0.3, 0.2, 0.1)
        assert self.heads(predictor) == [2]

    def test_equal_scores_keep_their_order(self, predictor: Predictor) -> None:
        for head in range(5):
            self.masks[head, :, 2 * head : 2 * head + 2] = True
        assert self.heads(predictor) == [0, 1, 2, 3, 4]


class TestLookingAhead:
    inference = dataclasses.replace(SMALL, look_ahead=0.5)
    photo = tiny.photo(48, 64, seed=3)

    def predictor(self, *, heads: int = 6, **inference: Any) -> Predictor:
        used = dataclasses.replace(self.inference, **inference)
        about = tiny.description(pyramid=True, previous=True, heads=heads, inference=used)
        return tiny.predictor(about)

    def only(self, predictor: Predictor, image: Any, click: Click) -> list[Proposal]:
        """One proposal, a disk, as if all of f's masks were alike."""
        first = predictor.predict(image, [click])[0]
        rows, columns = np.ogrid[:48, :64]
        disk = (rows - click.y) ** 2 + (columns - click.x) ** 2 <= 100
        return [Proposal(mask=disk, score=first.score, head=first.head)]

    def test_gives_the_best_mask_of_two_clicks(self) -> None:
        predictor = self.predictor(merge_iou=None)
        image, click = predictor.embed(self.photo), Click(x=30, y=22)
        proposals = self.only(predictor, image, click)
        found = predictor.look_ahead(image, [click], proposals)
        assert {proposal.head for proposal in found} == {LOOKED_AHEAD}
        assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
        # One at a time, without a mask before: what a model that never looks closer would answer.
        network, selection = predictor.model.proposal, predictor.model.selection
        assert selection is not None
        expected = []
        for x, y in points_beside(proposals[0].mask, 0.5):
            clicks = pack_clicks([[click, Click(x=x, y=y)]], scale=image.scale)
            with torch.no_grad():
                decoded = network(image.projected, Prompt(clicks=clicks))
                rated = selection(
                    image.rgb, Prompt(clicks=clicks), decoded.logits.sigmoid(), decoded.features
                )
            best = decoded.logits[0, int(rated.argmax())].numpy()
            expected.append(Logits(best, image.whole, height=48, width=64).mask())
        assert len(expected) == 4
        assert len(found) > 1
        for proposal in found:
            assert max((proposal.mask == mask).mean() for mask in expected) > 0.999

    def test_is_like_nothing_that_was_offered_and_fills_the_free_places(self) -> None:
        predictor = self.predictor()
        image, click = predictor.embed(self.photo), Click(x=30, y=22)
        proposals = self.only(predictor, image, click)
        first = predictor.look_ahead(image, [click], proposals)
        assert first
        offered = [*predictor.predict(image, [click]), *first]
        for place, proposal in enumerate(first):
            assert proposal.mask.any()
            for other in first[:place]:
                common, either = proposal.mask & other.mask, proposal.mask | other.mask
                assert common.sum() / either.sum() < 0.95
        taken = [Proposal(mask=p.mask, score=p.score, head=0) for p in offered][:5]
        assert len(predictor.look_ahead(image, [click], taken)) <= 6 - len(taken)
        full = [Proposal(mask=proposals[0].mask, score=0.5, head=head) for head in range(6)]
        assert not predictor.can_look_ahead([click], full)
        assert predictor.look_ahead(image, [click], full) == []

    @pytest.mark.parametrize(
        "change",
        [
            "two clicks",
            "a negative click",
            "not asked for",
            "a g that does not expect an IoU",
            "nothing yet",
        ],
    )
    def test_not(self, change: str) -> None:
        clicks = [Click(x=30, y=22)]
        predictor = self.predictor(look_ahead=None if change == "not asked for" else 0.5)
        if change == "a g that does not expect an IoU":
            predictor = tiny.predictor(tiny.description(heads=6, inference=self.inference))
        image = predictor.embed(self.photo)
        proposals = [] if change == "nothing yet" else self.only(predictor, image, clicks[0])
        if change == "two clicks":
            clicks.append(Click(x=3, y=3, positive=False))
        if change == "a negative click":
            clicks = [Click(x=30, y=22, positive=False)]
        passes = counted(predictor)
        assert not predictor.can_look_ahead(clicks, proposals)
        assert predictor.look_ahead(image, clicks, proposals) == []
        assert passes == []

    def test_a_mask_that_fills_the_image_has_nothing_beside_it(self) -> None:
        predictor = self.predictor()
        image, click = predictor.embed(self.photo), Click(x=30, y=22)
        everything = [Proposal(mask=np.ones((48, 64), bool), score=0.5, head=0)]
        assert predictor.can_look_ahead([click], everything)
        assert predictor.look_ahead(image, [click], everything) == []


class TestReplay:
    @pytest.fixture
    def predictor(self) -> Predictor:
        """Full resolution with the previous mask as input, so that soft masks can be handed in."""
        return tiny.predictor(tiny.description(previous=True))

    def soft_masks(self, predictor: Predictor) -> list[Tensor]:
        """The logits of every pass of f from now on."""
        passes: list[Tensor] = []
        predictor.model.proposal.register_forward_hook(
            lambda _module, _inputs, decoded: passes.append(decoded.logits[0].clone())
        )
        return passes

    def test_equals_handing_on_the_soft_masks(self, predictor: Predictor) -> None:
        image = predictor.embed(tiny.photo(30, 40))
        by_hand = tiny.predictor(tiny.description(previous=True))
        same_image = by_hand.embed(tiny.photo(30, 40))
        passes = self.soft_masks(by_hand)
        previous: NDArray[np.float32] | None = None
        answers = []
        for count in range(1, len(CLICKS) + 1):
            answers.append(by_hand.predict(same_image, CLICKS[:count], previous))
            previous = passes[-1][answers[-1][0].head].sigmoid().numpy()
        # The previous mask matters at all:
        assert not same(answers[-1], by_hand.predict(same_image, CLICKS, np.zeros((30, 40), bool)))
        assert same(predictor.predict(image, CLICKS), answers[-1])

    def test_takes_one_pass_for_one_more_click(self, predictor: Predictor) -> None:
        image = predictor.embed(tiny.photo(30, 40))
        passes = counted(predictor)
        for count in range(1, len(CLICKS) + 1):
            predictor.predict(image, CLICKS[:count])
            assert len(passes) == count
        # From nothing: as many passes as clicks; again: one.
        other = predictor.embed(tiny.photo(30, 40, seed=1))
        passes.clear()
        predictor.predict(other, CLICKS)
        assert len(passes) == len(CLICKS)
        predictor.predict(other, CLICKS)
        assert len(passes) == len(CLICKS) + 1

    def test_a_forgotten_prefix_is_replayed_with_the_same_answer(
        self, predictor: Predictor
    ) -> None:
        image = predictor.embed(tiny.photo(30, 40))
        remembered = [predictor.predict(image, CLICKS[:n]) for n in (1, 2, 3)][-1]
        predictor._memo._max_bytes = 0
        while predictor._memo._entries:
            predictor._memo._drop(next(iter(predictor._memo._entries)))
        assert same(predictor.predict(image, CLICKS), remembered)

    def test_a_mask_that_is_handed_in_is_not_remembered_for_others(
        self, predictor: Predictor
    ) -> None:
        image = predictor.embed(tiny.photo(30, 40))
        expected = tiny.predictor(tiny.description(previous=True)).predict(image, CLICKS)
        predictor.predict(image, CLICKS[:2], previous=np.ones((30, 40), bool))
        assert same(predictor.predict(image, CLICKS), expected)

    def test_thousands_of_clicks_are_no_recursion(
        self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            predictor, "_propose", lambda *_: (torch.ones(4, 2, 2), torch.arange(4.0) / 4)
        )
        image = predictor.embed(tiny.photo(2, 2))
        clicks = [Click(x=0, y=0)] * (sys.getrecursionlimit() + 100)
        assert predictor.predict(image, clicks)[0].head == 3

    def test_interleaved_annotators_get_what_they_get_alone(self, predictor: Predictor) -> None:
        rgb = tiny.photo(30, 40)
        theirs = [CLICKS, [Click(x=5, y=25), Click(x=35, y=2, positive=False), Click(x=9, y=20)]]
        alone = []
        for clicks in theirs:
            fresh = tiny.predictor(tiny.description(previous=True))
            alone.append([fresh.predict(fresh.embed(rgb), clicks[:n]) for n in (1, 2, 3)])
        for count in (1, 2, 3):
            for annotator, clicks in enumerate(theirs):
                answer = predictor.predict(predictor.embed(rgb), clicks[:count])
                assert same(answer, alone[annotator][count - 1])
        assert not same(alone[0][2], alone[1][2])

    @pytest.mark.parametrize("kind", [np.float32, np.float64, np.bool_, np.float16])
    def test_masks_of_any_kind_are_taken(self, predictor: Predictor, kind: Any) -> None:
        image = predictor.embed(tiny.photo(30, 40))
        mask = np.zeros((30, 40))
        mask[5:20, 5:20] = 1
        expected = predictor.predict(image, CLICKS, mask.astype(np.float32))
        assert same(predictor.predict(image, CLICKS, mask.astype(kind)), expected)

    def test_what_is_no_number_in_a_mask_counts_as_outside(self, predictor: Predictor) -> None:
        image = predictor.embed(tiny.photo(30, 40))
        mask = np.zeros((30, 40), np.float32)
        expected = predictor.predict(image, CLICKS, mask)
        mask[3, 3], mask[4, 4] = np.nan, -7
        assert same(predictor.predict(image, CLICKS, mask), expected)

    def test_a_mask_of_another_size_is_refused(self, predictor: Predictor) -> None:
        image = predictor.embed(tiny.photo(30, 40))
        with pytest.raises(BadImageError, match=r"shape \(40, 30\), the image is 30 x 40"):
            predictor.predict(image, CLICKS, np.zeros((40, 30), bool))


class TestEmbedding:
    def test_the_same_image_is_embedded_once(self, default: Predictor) -> None:
        first = default.embed(tiny.photo(30, 40, seed=5))
        assert default.embed(tiny.photo(30, 40, seed=5)) is first
        assert default.embed(tiny.photo(30, 40, seed=6)) is not first

    def test_threads_that_ask_together_wait_for_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        predictor = tiny.predictor(tiny.description())
        project = predictor.model.proposal.project
        started, release, calls = threading.Event(), threading.Event(), []

        def slowly(rgb: Tensor, features: Any) -> Any:
            calls.append(1)
            started.set()
            assert release.wait(10)
            return project(rgb, features)

        monkeypatch.setattr(predictor.model.proposal, "project", slowly)
        rgb = tiny.photo(30, 40)
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(predictor.embed, rgb) for _ in range(3)]
            assert started.wait(10)
            release.set()
            embeddings = [future.result(10) for future in futures]
        assert len(calls) == 1
        assert all(embedding is embeddings[0] for embedding in embeddings)

    def test_threads_that_predict_together_get_what_they_get_alone(self) -> None:
        predictor = tiny.predictor(tiny.description(previous=True))
        rgb = tiny.photo(30, 40)
        sequences = [[Click(x=3 * i, y=2 * i), Click(x=39 - i, y=i)] for i in range(8)]
        fresh = tiny.predictor(tiny.description(previous=True))
        alone = [fresh.predict(fresh.embed(rgb), clicks) for clicks in sequences]
        with ThreadPoolExecutor(4) as pool:
            together = list(
                pool.map(lambda c: predictor.predict(predictor.embed(rgb), c), sequences)
            )
        assert all(same(p, q) for p, q in zip(together, alone, strict=True))

    def test_the_cache_is_bounded_in_bytes(self) -> None:
        one = tiny.predictor(tiny.description()).embed(tiny.photo(30, 40)).nbytes
        assert one >= 30 * 40 * (3 + 64 * 4)
        predictor = tiny.predictor(tiny.description(), cache_bytes=3 * one + one // 2)
        for seed in range(6):
            predictor.embed(tiny.photo(30, 40, seed=seed))
            assert predictor._caches.images.size <= 3 * one + one // 2
        assert len(predictor._caches.images) == 3

    def test_what_is_kept_is_found_by_its_key(self) -> None:
        one = tiny.predictor(tiny.description()).embed(tiny.photo(30, 40)).nbytes
        predictor = tiny.predictor(tiny.description(), cache_bytes=2 * one)
        images = [predictor.embed(tiny.photo(30, 40, seed=seed)) for seed in range(2)]
        assert [predictor.find(image.key) for image in images] == images
        # What was looked for stays.
        predictor.find(images[0].key)
        predictor.embed(tiny.photo(30, 40, seed=2))
        assert [predictor.find(image.key) for image in images] == [images[0], None]

    def test_models_that_share_a_cache_share_its_limit_and_nothing_else(self) -> None:
        rgb, clicks = tiny.photo(30, 40), CLICKS[:1]
        alone = [tiny.predictor(tiny.description(), seed=seed) for seed in range(2)]
        one = alone[0].embed(rgb).nbytes
        caches = EmbeddingCaches.of(3 * one)
        together = [tiny.predictor(tiny.description(), seed=s, caches=caches) for s in range(2)]
        for predictor, other in zip(together, alone, strict=True):
            found = predictor.predict(predictor.embed(rgb), clicks)
            assert same(found, other.predict(other.embed(rgb), clicks))
        assert len(caches.images) == 2
        for seed in range(1, 4):
            together[0].embed(tiny.photo(30, 40, seed=seed))
        assert caches.images.size <= 3 * one

    def test_without_a_cache_it_still_works(self) -> None:
        predictor = tiny.predictor(tiny.description(), cache_bytes=0)
        rgb = tiny.photo(30, 40)
        assert predictor.embed(rgb) is not predictor.embed(rgb)

    def test_its_size_does_not_grow_with_the_photo(self, default: Predictor) -> None:
        sizes = {
            default.embed(tiny.photo(h, w)).nbytes for h, w in ((48, 64), (480, 640), (1500, 2000))
        }
        assert len(sizes) == 1
        assert default.embed(tiny.photo(1500, 2000)).rgb.shape == (1, 3, 48, 64)

    def test_a_photo_of_another_size_is_another_image(self, default: Predictor) -> None:
        # Grey stays grey at any size: only the sizes tell these apart.
        grey = [np.full((h, w, 3), 90, np.uint8) for h, w in ((48, 64), (96, 128))]
        small, large = (default.embed(rgb) for rgb in grey)
        assert small is not large
        assert default.predict(large, CLICKS[:1])[0].mask.shape == (96, 128)

    def test_an_image_is_shrunk_by_averaging(self, default: Predictor) -> None:
        rgb = tiny.photo(480, 640)
        seen = default.embed(rgb).rgb[0].permute(1, 2, 0).numpy() * 255
        expected = cv2.resize(rgb, (64, 48), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(seen, expected, atol=1e-3)

    def test_arrays_of_any_layout_are_taken(self, default: Predictor) -> None:
        rgb = tiny.photo(30, 40)
        plain = default.embed(rgb)
        read_only = rgb.copy()
        read_only.flags.writeable = False
        for other in (
            read_only,
            np.asfortranarray(rgb),
            rgb[::-1][::-1],
            rgb[..., ::-1][..., ::-1],
        ):
            assert default.embed(other) is plain

    def test_what_the_caller_does_to_the_array_later_does_not_matter(self) -> None:
        predictor = tiny.predictor(tiny.description())
        rgb = tiny.photo(30, 40)
        image = predictor.embed(rgb)
        before = image.rgb.clone()
        rgb[:] = 0
        assert torch.equal(image.rgb, before)

    @pytest.mark.parametrize(
        "rgb",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((4, 4, 3), np.float32),
            np.zeros((0, 4, 3), np.uint8),
            np.zeros((4, 4, 3), np.int64),
        ],
    )
    def test_other_arrays_are_refused(self, default: Predictor, rgb: Any) -> None:
        with pytest.raises(BadImageError, match=r"must be uint8 of shape \(H, W, 3\)"):
            default.embed(rgb)


class TestBadClicks:
    @pytest.mark.parametrize(
        "click",
        [
            Click(x=math.nan, y=1),
            Click(x=1, y=math.inf),
            Click(x=-1, y=1),
            Click(x=40, y=1),
            Click(x=1, y=30),
        ],
    )
    @pytest.mark.parametrize("place", [0, 1])
    def test_are_refused(self, default: Predictor, click: Click, place: int) -> None:
        image = default.embed(tiny.photo(30, 40))
        clicks = [Click(x=5, y=5)]
        clicks.insert(place, click)
        with pytest.raises(BadClickError):
            default.predict(image, clicks)

    def test_none_is_refused(self, default: Predictor) -> None:
        with pytest.raises(BadClickError, match="no click"):
            default.predict(default.embed(tiny.photo(30, 40)), [])

    def test_negative_clicks_alone_are_answered(self, default: Predictor) -> None:
        image = default.embed(tiny.photo(30, 40))
        assert default.predict(image, [Click(x=5, y=5, positive=False)])


class TestDevices:
    @pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
    def test_a_device_that_is_not_there_is_refused(self, name: str) -> None:
        with pytest.raises(BadRequestError, match=f"no device '{name}' here"):
            choose_device(name)

    def test_the_cpu_is_always_there(self) -> None:
        assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "description",
    [
        tiny.description(heads=3),
        tiny.description(heads=3, ranked=True),
        tiny.description(pyramid=True, previous=True, inference=SMALL),
    ],
    ids=["paper", "ranked", "default"],
)
def test_warming_up_changes_no_answer(description: ModelDescription) -> None:
    image = np.random.default_rng(4).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    cold, warm = tiny.predictor(description), tiny.predictor(description)
    passes = counted(warm)
    warm.warm_up()
    assert len(passes) == 1 + description.proposal.prompt.previous
    assert warm.find("") is None
    told = [predictor.predict(predictor.embed(image), CLICKS) for predictor in (cold, warm)]
    assert same(*told)


def test_networks_stay_as_they_were(default: Predictor) -> None:
    default.predict(default.embed(tiny.photo(30, 40)), CLICKS)
    modules: list[nn.Module | None] = [default.model.proposal, default.model.selection]
    for module in modules:
        assert module is not None
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
