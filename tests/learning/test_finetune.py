from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.learning import finetune as finetune_module
from lidiv_backend.learning.finetune import (
    AtInferenceSize,
    MixedSet,
    TuningData,
    WithoutOutlines,
    anchor,
    blend,
    finetune,
    tuning_config,
    usual_length,
)
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.snapshot import Snapshot, take_snapshot
from lidiv_backend.learning.vault import Vault
from lidiv_backend.model import InferenceConfig, Model, load_model, save_model
from lidiv_backend.networks import encoders
from lidiv_backend.networks.encoders import Encoder
from lidiv_backend.records import AnnotatedImage
from lidiv_backend.training import trainer as trainer_module
from lidiv_backend.training.config import PRESETS, LossConfig
from tests import tiny
from tests.learning.conftest import MakeWeights
from tests.learning.lab import Lab

SETTINGS = LearningSettings(steps=4, threads=1, device="cpu")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def snapshot(lab: Lab, vault: Vault, tmp_path: Path, tasks: int, holdout: float = 0.3) -> Snapshot:
    for task in range(tasks):
        lab.accept(task)
    return take_snapshot(
        lab.store,
        vault,
        tmp_path / "snapshots",
        lab.fetch,
        channel="shared",
        projects=None,
        holdout=holdout,
    )


def data(frozen: Snapshot, vault: Vault, **changes: object) -> TuningData:
    values = {"snapshot": frozen, "earlier": frozenset(), "vault": vault, "base": None}
    return TuningData(**(values | changes))  # type: ignore[arg-type]


@dataclasses.dataclass
class Watched:
    """A data set that notes what was asked for."""

    base: tiny.PaintedSet
    name: str
    reads: int = 0

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> AnnotatedImage:
        self.reads += 1
        return dataclasses.replace(self.base[index], name=self.name)


def test_shares_do_not_depend_on_sizes() -> None:
    large, small = (
        Watched(tiny.PaintedSet(length=500), "l"),
        Watched(tiny.PaintedSet(length=2), "s"),
    )
    mixed = MixedSet([(large, 3.0), (small, 1.0)], seed=0)
    names = [mixed[index].name for index in range(200)]
    assert 120 < names.count("l") < 180
    again = MixedSet([(large, 3.0), (small, 1.0)], seed=0)
    assert [again[index].name for index in range(200)] == names


def test_images_come_at_the_size_at_which_the_networks_see_them() -> None:
    class Clicked(tiny.PaintedSet):
        def __getitem__(self, index: int) -> AnnotatedImage:
            image = super().__getitem__(index)
            objects = tuple(
                dataclasses.replace(item, clicks=(Click(x=79.5, y=-0.5, positive=True),))
                for item in image.objects
            )
            return dataclasses.replace(image, objects=objects)

    inference = InferenceConfig(longest_side=160, max_pixels=None)
    image = AtInferenceSize(Clicked(), inference, multiple=8)[0]
    assert image.rgb.shape == (120, 160, 3)
    before = Clicked()[0]
    for large, small in zip(image.objects, before.objects, strict=True):
        # Twice as large along both sides: every pixel is four.
        np.testing.assert_array_equal(large.mask, small.mask.repeat(2, 0).repeat(2, 1))
        assert large.clicks == (Click(x=159.5, y=-0.5, positive=True),)
    same = AtInferenceSize(Clicked(), InferenceConfig(), multiple=1)[0]
    np.testing.assert_array_equal(same.rgb, before.rgb)


def test_the_pull_is_the_gradient_of_the_penalty() -> None:
    torch.manual_seed(0)
    free, pulled = nn.Linear(3, 2), nn.Linear(3, 2)
    pulled.load_state_dict(free.state_dict())
    origin = {"weight": torch.randn(2, 3), "bias": torch.zeros(5)}
    anchor(pulled, origin, 0.7)
    inputs = torch.randn(4, 3)
    penalty = 0.7 * (free.weight - origin["weight"]).square().sum()
    (free(inputs).square().sum() + penalty).backward()
    pulled(inputs).square().sum().backward()
    torch.testing.assert_close(pulled.weight.grad, free.weight.grad)
    # Of another shape: it stays free.
    torch.testing.assert_close(pulled.bias.grad, free.bias.grad)


def test_what_was_trained_is_blended_with_what_it_began_with(make_weights: MakeWeights) -> None:
    before, folder = load_model(make_weights(0, ranked=False)), make_weights(1, ranked=False)
    trained = load_model(folder)
    blend(folder, before, 0.25)
    found = load_model(folder)
    for first, last, mean in (
        (before.proposal, trained.proposal, found.proposal),
        (before.selection, trained.selection, found.selection),
    ):
        assert first is not None
        assert last is not None
        assert mean is not None
        weights = [network.state_dict() for network in (first, last, mean)]
        for name in weights[0]:
            expected = 0.75 * weights[0][name] + 0.25 * weights[1][name]
            torch.testing.assert_close(weights[2][name], expected)
    assert found.version != trained.version
    assert found.description.training["blend"] == 0.25


def test_a_preset_is_tuned_as_it_was_trained() -> None:
    preset = PRESETS["default"]
    about = tiny.description(name="default", pyramid=True)
    about = dataclasses.replace(about, training=json.loads(json.dumps(preset.to_json())))
    config = tuning_config(about, SETTINGS, length=50)
    config.validate()
    assert config.name == "default-tuned"
    assert (config.loss.focal, config.loss.clicks) == (preset.loss.focal, preset.loss.clicks)
    assert config.joint
    # A step of its own size, whatever the preset was trained with.
    assert (config.images, config.targets, config.crop) == (4, 3, 192)
    assert (config.steps, config.rate, config.recorded) == (4, SETTINGS.rate, 0.5)
    # Objects are seen at up to twice their size by models that look closer, and by no others.
    closer = dataclasses.replace(about, inference=preset.inference)
    assert tuning_config(closer, SETTINGS, length=50).zoom[1] == 2 * config.zoom[1]
    again = tuning_config(dataclasses.replace(about, name="default-tuned"), SETTINGS, length=50)
    assert again.name == "default-tuned"
    # Whole images, one at a time, stay what they are.
    whole = tuning_config(tiny.description(), SETTINGS, length=50)
    assert (whole.images, whole.crop) == (1, None)
    # What an unknown version wrote is not understood, and does no harm.
    odd = dataclasses.replace(about, training={"loss": {"what": 1}, "crop": 320})
    assert tuning_config(odd, SETTINGS, length=50).loss.task == LossConfig().task


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.2), (0.3, 0.3)])
def test_masks_that_are_not_the_best_learn_too(before: float, after: float) -> None:
    preset = PRESETS["default"]
    loss = dataclasses.replace(preset.loss, relaxation=before)
    trained = dataclasses.replace(preset, loss=loss).to_json()
    about = dataclasses.replace(tiny.description(name="default", pyramid=True), training=trained)
    tuned = tuning_config(about, SETTINGS, length=50).loss
    assert tuned == dataclasses.replace(loss, relaxation=after)


def test_logits_that_were_softened_once_are_not_softened_again() -> None:
    trained = dataclasses.replace(PRESETS["paper"], soften=800.0).to_json()
    about = dataclasses.replace(tiny.description(name="paper"), training=trained)
    assert tuning_config(about, SETTINGS, length=50).soften == 1


def test_sizes_that_the_images_of_a_lab_do_not_have_are_not_taught() -> None:
    trained = dataclasses.replace(PRESETS["default"], close_ups=0.4, collages=0.25).to_json()
    about = dataclasses.replace(tiny.description(name="default", pyramid=True), training=trained)
    tuned = tuning_config(about, SETTINGS, length=50)
    assert (tuned.close_ups, tuned.collages) == (0, 0)


def test_f_and_g_learn_at_once_where_one_did_after_the_other() -> None:
    trained = dataclasses.replace(PRESETS["paper"], frozen=True).to_json()
    about = dataclasses.replace(tiny.description(name="paper"), training=trained)
    config = tuning_config(about, SETTINGS, length=50)
    assert config.joint
    assert not config.frozen


def test_squares_show_what_is_around_the_labs_objects() -> None:
    preset = PRESETS["default"]
    about = dataclasses.replace(
        tiny.description(name="default", pyramid=True), training=preset.to_json()
    )
    sides = {
        length: tuning_config(about, SETTINGS, length=length).crop or 0
        for length in (10, 64, 65, 106, 500)
    }
    assert sides == {10: 192, 64: 192, 65: 320, 106: 320, 500: 320}
    # Weights that were tuned before do not stay with the squares of that time.
    tuned = dataclasses.replace(about, training={**preset.to_json(), "crop": 192, "images": 4})
    assert tuning_config(tuned, SETTINGS, length=100).crop == 320
    assert tuning_config(tuned, SETTINGS, length=100).images == 2


class TestOutlines:
    rows, columns = np.mgrid[:120, :160]

    def disk(self, radius: float, *, x: int = 80) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.hypot(self.columns - x, self.rows - 60) <= radius
        return found

    def ignored(self, mask: NDArray[np.bool_], *, clicks: int = 1) -> NDArray[np.bool_] | None:
        class One(tiny.PaintedSet):
            def __getitem__(self, index: int) -> AnnotatedImage:
                image = super().__getitem__(index)
                made = (Click(x=80, y=60, positive=True),) * clicks
                item = dataclasses.replace(image.objects[0], mask=mask, clicks=made)
                rgb = np.zeros((*mask.shape, 3), np.uint8)
                return dataclasses.replace(image, rgb=rgb, objects=(item,))

        return WithoutOutlines(One())[0].objects[0].ignore

    def test_a_band_in_proportion_to_the_mask(self) -> None:
        band = self.ignored(self.disk(40))
        assert band is not None
        # 0.07 of a diameter of 80 pixels to both sides.
        assert not (band & self.disk(33)).any()
        assert not (band & ~self.disk(47)).any()
        assert band[self.disk(45) & ~self.disk(35)].all()
        small = self.ignored(self.disk(3))
        assert small is not None
        assert not (small & self.disk(1)).any()

    def test_an_edge_of_the_image_is_no_outline(self) -> None:
        band = self.ignored(self.disk(40, x=0))
        assert band is not None
        assert not band[40:80, 0].any()
        assert band[15:25, 0].any()

    def test_what_was_drawn_by_hand_counts_to_the_pixel(self) -> None:
        assert self.ignored(self.disk(40), clicks=0) is None


def test_the_usual_length_is_the_median_of_the_longer_sides() -> None:
    class Sized(tiny.PaintedSet):
        def __getitem__(self, index: int) -> AnnotatedImage:
            if index == 3:
                raise DataError("unreadable")
            image = super().__getitem__(index)
            mask = np.zeros_like(image.objects[0].mask)
            mask[2:6, 5 : 5 + (8, 30, 11)[index]] = True
            return dataclasses.replace(
                image, objects=(dataclasses.replace(image.objects[0], mask=mask),)
            )

    assert usual_length(Sized(length=4)) == 11
    with pytest.raises(DataError, match="None of the accepted masks"):
        usual_length(Sized(length=0))


def test_new_annotations_earlier_ones_and_the_base_set_are_mixed(
    lab: Lab, vault: Vault, tmp_path: Path
) -> None:
    frozen = snapshot(lab, vault, tmp_path, 12)
    trained = frozen.part(held_out=False)
    earlier = frozenset(mask.name for image in trained[:4] for mask in image.masks)
    base = Watched(tiny.PaintedSet(), "base")
    mixed = data(frozen, vault, earlier=earlier, base=base).mixed(
        inference=InferenceConfig(), multiple=1, seed=0
    )
    names = [mixed[index].name for index in range(300)]
    counts = {
        "new": sum(names.count(image.image) for image in trained[4:]),
        "earlier": sum(names.count(image.image) for image in trained[:4]),
        "base": names.count("base"),
    }
    assert sum(counts.values()) == 300  # nothing that is held out
    assert 145 < counts["new"] < 215
    assert all(35 < counts[name] < 90 for name in ("earlier", "base"))


def test_nothing_to_learn_from_is_told(lab: Lab, vault: Vault, tmp_path: Path) -> None:
    frozen = snapshot(lab, vault, tmp_path, 3, holdout=1.0)
    with pytest.raises(DataError, match="nothing to learn from"):
        data(frozen, vault).mixed(inference=InferenceConfig(), multiple=1, seed=0)


def test_it_begins_with_the_weights_in_use_and_learns(
    lab: Lab, vault: Vault, tmp_path: Path, make_weights: MakeWeights
) -> None:
    model = load_model(make_weights(0, ranked=False))
    frozen = snapshot(lab, vault, tmp_path, 6)
    tuned = load_model(finetune(model, model, data(frozen, vault), SETTINGS, tmp_path / "run"))
    assert tuned.version.startswith("tiny-tuned-")
    assert tuned.description.training["steps_done"] == 4
    distance = _distance(tuned.proposal, model.proposal)
    assert 0 < distance < 0.05
    assert tuned.selection is not None
    assert model.selection is not None
    assert _distance(tuned.selection, model.selection) > 0
    # The same seed gives the same weights.
    again = finetune(model, model, data(frozen, vault), SETTINGS, tmp_path / "again")
    assert load_model(again).version == tuned.version


def test_a_run_that_was_cut_off_goes_on(
    lab: Lab, vault: Vault, tmp_path: Path, make_weights: MakeWeights
) -> None:
    model = load_model(make_weights(0))
    frozen = snapshot(lab, vault, tmp_path, 6)
    short = SETTINGS.model_copy(update={"steps": 2})
    finetune(model, model, data(frozen, vault), short, tmp_path / "run")
    longer = SETTINGS.model_copy(update={"steps": 5})
    tuned = load_model(finetune(model, model, data(frozen, vault), longer, tmp_path / "run"))
    assert tuned.description.training["steps_done"] == 5


def test_time_is_limited(lab: Lab, vault: Vault, tmp_path: Path, make_weights: MakeWeights) -> None:
    model = load_model(make_weights(0))
    frozen = snapshot(lab, vault, tmp_path, 6)
    hurried = SETTINGS.model_copy(update={"steps": 100_000, "minutes": 1e-9})
    tuned = load_model(finetune(model, model, data(frozen, vault), hurried, tmp_path / "run"))
    assert 0 < tuned.description.training["steps_done"] < 100_000


def _distance(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


class TestScope:
    @pytest.fixture(autouse=True)
    def _random_encoder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def random(name: str) -> Encoder:
            torch.manual_seed(0)
            return encoders.build_encoder(name, pretrained=False)

        for module in (finetune_module, trainer_module):
            monkeypatch.setattr(module, "build_encoder", random)

    @pytest.fixture
    def base(self, tmp_path: Path) -> Model:
        """A model that knows what it was trained on."""
        about = dataclasses.replace(
            tiny.description(name="default", pyramid=True, heads=2),
            training={"crop": 32, "images": 1, "targets": 1, "joint": True},
        )
        made = tiny.model(about)
        assert made.selection is not None
        save_model(
            tmp_path / "base",
            about,
            made.proposal.state_dict(),
            made.selection.state_dict(),
            references=nn.functional.normalize(torch.rand(3, 1216), dim=1),
        )
        return load_model(tmp_path / "base")

    def test_other_images_are_left_to_the_base_weights(
        self, lab: Lab, vault: Vault, tmp_path: Path, base: Model
    ) -> None:
        frozen = snapshot(lab, vault, tmp_path, 6)
        tuned = load_model(finetune(base, base, data(frozen, vault), SETTINGS, tmp_path / "run"))
        assert tuned.elsewhere is not None
        assert base.references is not None
        scope = tuned.elsewhere.scope
        trained = len(frozen.part(held_out=False))
        assert tuned.description.training["scope"] == {"own": trained, "others": 3}
        assert len(scope.own) == trained
        torch.testing.assert_close(scope.others, base.references)
        assert tuned.description.training["blend"] == SETTINGS.blend
        assert _distance(tuned.elsewhere.proposal, base.proposal) == 0
        assert _distance(tuned.proposal, base.proposal) > 0
        # Tuned again, images that are like neither are still left to the same weights.
        again = load_model(finetune(tuned, base, data(frozen, vault), SETTINGS, tmp_path / "again"))
        assert again.elsewhere is not None
        assert _distance(again.elsewhere.proposal, base.proposal) == 0

    def test_weights_of_another_kind_keep_their_own_scope(
        self, lab: Lab, vault: Vault, tmp_path: Path, base: Model, make_weights: MakeWeights
    ) -> None:
        frozen = snapshot(lab, vault, tmp_path, 6)
        tuned = load_model(finetune(base, base, data(frozen, vault), SETTINGS, tmp_path / "run"))
        other = load_model(make_weights(0))
        again = load_model(
            finetune(tuned, other, data(frozen, vault), SETTINGS, tmp_path / "again")
        )
        assert again.elsewhere is not None
        assert _distance(again.elsewhere.proposal, base.proposal) == 0

    def test_weights_that_answer_everywhere_stay_nearer(
        self, lab: Lab, vault: Vault, tmp_path: Path, base: Model
    ) -> None:
        frozen = snapshot(lab, vault, tmp_path, 6)
        unknown = dataclasses.replace(base, references=None)
        tuned = load_model(
            finetune(unknown, unknown, data(frozen, vault), SETTINGS, tmp_path / "run")
        )
        assert tuned.elsewhere is None
        assert tuned.description.training["blend"] == 0.35 < SETTINGS.blend
