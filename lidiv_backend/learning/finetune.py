"""Fine-tuning: a model goes on learning from a snapshot without forgetting what it knew.

It begins with the weights in use. Newly accepted annotations are mixed with earlier ones and with a
base set, where the lab has one; clicks of the annotators with simulated ones; and every step pulls
the weights back to those that LiDiv came with (L2-SP; Li, Grandvalet and Davoine, ICML 2018). What
comes out is a mean of those and of what training came to.

A mask that an annotator chose among alternatives teaches g like any other: the clicks that led to
it are the prompt, and every one of f's masks is rated by its IoU with what was accepted. Images
with such choices are drawn more often, since there g was wrong; and in the end g alone learns which
masks were passed over for which, see `lidiv_backend.learning.choices`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from lidiv_backend.caching import BoundedCache
from lidiv_backend.clicks import Click
from lidiv_backend.devices import best_precision, choose_device
from lidiv_backend.errors import DataError
from lidiv_backend.learning.choices import learn_choices
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.snapshot import Snapshot, SnapshotImage, SnapshotSet
from lidiv_backend.learning.vault import Vault
from lidiv_backend.model import (
    Elsewhere,
    InferenceConfig,
    Model,
    ModelDescription,
    load_model,
    write_model,
)
from lidiv_backend.networks.encoders import build_encoder
from lidiv_backend.predictor import Predictor, input_size
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask, some_images
from lidiv_backend.scope import Scope
from lidiv_backend.training.checkpoints import CheckpointFolder
from lidiv_backend.training.config import LossConfig, TrainingConfig
from lidiv_backend.training.references import describe_images
from lidiv_backend.training.simulation import DosProtocol
from lidiv_backend.training.trainer import RunOptions, Trainer

#: How examples are shared out among new annotations, earlier ones and the base set, if all exist.
_SHARES = {"new": 0.6, "earlier": 0.2, "base": 0.2}
#: An image with a mask that was chosen among alternatives counts so many times.
_STEPPED = 2
#: Learning rate of the part in which g alone learns from choices.
_CHOICES_RATE = 5e-4
_SUFFIX = "-tuned"
#: What a step may look at: images, objects of each, and the side of the squares that are cut from
#: them. Small squares show more objects in the same time, as long as they show what is around them.
_FRAMES = ((4, 3, 192), (2, 2, 320))
#: How far to both sides the outline of a mask that the model drew says nothing, as a part of its
#: diameter. A disk that is accepted at 85 % IoU may be off by 0.04 of it all along.
_OUTLINE = 0.07
#: A square is this many times as long as the lab's usual object, if there is one.
_AROUND = 3
#: The least part of the mean over all masks in f's loss. A lab's few hundred steps teach the best
#: mask of each example, but another may be shown: without any of it, clicks do not become fewer.
_RELAXATION = 0.2
#: So many images say how large a lab's objects are.
_SIZED_IMAGES = 64
# Examples are drawn from so many places; only their shares matter.
_PLACES = 1 << 20
_CACHE_BYTES = 300 * 2**20
#: Of so many images that were learnt from it is kept what they are like.
_OWN_IMAGES = 256
#: Weights that answer on every image go at most so far from those that LiDiv came with.
_CAREFUL_BLEND = 0.35


class MixedSet:
    """Several data sets as one, each with a share of its own whatever their sizes; an `ImageSet`.

    Parameters
    ----------
    parts
        Data sets with their shares, which need not add up to 1; none of them empty.
    seed
        Which image stands at which place.
    """

    def __init__(self, parts: Sequence[tuple[ImageSet, float]], *, seed: int) -> None:
        self.name = "+".join(part.name for part, _ in parts)
        self._parts = tuple(part for part, _ in parts)
        shares = np.array([share for _, share in parts], dtype=np.float64)
        self._shares = shares / shares.sum()
        self._seed = seed

    def __len__(self) -> int:
        return _PLACES

    def __getitem__(self, index: int) -> AnnotatedImage:
        rng = np.random.default_rng([self._seed, index])
        part = self._parts[rng.choice(len(self._parts), p=self._shares)]
        return part[int(rng.integers(len(part)))]


class AtInferenceSize:
    """A data set at the size at which the networks will see its images; an `ImageSet`.

    Parameters
    ----------
    base
        The data set.
    inference
        How the networks are used.
    multiple
        Sides are multiples of this, as f wants it.
    cache_bytes
        Memory for images that are ready.
    """

    def __init__(
        self,
        base: ImageSet,
        inference: InferenceConfig,
        *,
        multiple: int,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self.name = base.name
        self._base = base
        self._inference = inference
        self._multiple = multiple
        self._cache: BoundedCache[int, AnnotatedImage] = BoundedCache(max_bytes=cache_bytes)

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return self._cache.get_or_compute(
            index, lambda: self._resized(self._base[index]), size_of=_bytes
        )

    def _resized(self, image: AnnotatedImage) -> AnnotatedImage:
        height, width = image.rgb.shape[:2]
        rows, columns = input_size(height, width, self._inference, multiple=self._multiple)
        if (rows, columns) == (height, width):
            return image
        how = cv2.INTER_AREA if rows * columns < height * width else cv2.INTER_LINEAR
        rgb = cv2.resize(image.rgb, (columns, rows), interpolation=how)
        objects = [_resize(item, rows, columns) for item in image.objects]
        return dataclasses.replace(
            image,
            rgb=rgb.astype(np.uint8, copy=False),
            objects=tuple(item for item in objects if item.mask.any()),
        )


class WithoutOutlines:
    """Accepted masks without what they say about their outlines; an `ImageSet`.

    A mask that clicks led to was good enough for an annotator, but its outline is the model's own:
    learning it again would teach the model its own errors, and keep it from finding better ones.
    Masks that no click led to were drawn by hand and count to the pixel. One that was corrected
    with the brush keeps its clicks, and cannot be told from one that was not.

    Parameters
    ----------
    base
        Accepted masks; those with clicks get an `ObjectMask.ignore` along their outlines.
    """

    def __init__(self, base: ImageSet) -> None:
        self.name = base.name
        self._base = base

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = self._base[index]
        return dataclasses.replace(
            image,
            objects=tuple(_spare_outline(item) if item.clicks else item for item in image.objects),
        )


def _spare_outline(item: ObjectMask) -> ObjectMask:
    """Ignore a band on both sides of a mask's outline, in proportion to the mask's size."""
    pixels = item.mask.astype(np.uint8)
    reach = max(1, round(_OUTLINE * 2 * float(np.sqrt(pixels.sum() / np.pi))))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    # Beyond the image's edge the object may go on: no band along it.
    inner = cv2.erode(pixels, disk, borderType=cv2.BORDER_REPLICATE)
    band = (cv2.dilate(pixels, disk) > 0) & (inner == 0)
    return dataclasses.replace(item, ignore=band if item.ignore is None else item.ignore | band)


def _bytes(image: AnnotatedImage) -> int:
    return image.rgb.nbytes + sum(2 * item.mask.nbytes for item in image.objects)


def _resize(item: ObjectMask, rows: int, columns: int) -> ObjectMask:
    height, width = item.mask.shape

    def small(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        resized = cv2.resize(
            mask.astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT
        )
        return resized.astype(bool)

    return dataclasses.replace(
        item,
        mask=small(item.mask),
        ignore=None if item.ignore is None else small(item.ignore),
        clicks=tuple(
            Click(
                x=(click.x + 0.5) * columns / width - 0.5,
                y=(click.y + 0.5) * rows / height - 0.5,
                positive=click.positive,
            )
            for click in item.clicks
        ),
    )


def usual_length(images: ImageSet) -> float:
    """How long a lab's objects are, in pixels: the median of the longer sides of their boxes.

    Parameters
    ----------
    images
        At the size at which the networks see them.

    Raises
    ------
    DataError
        If none of them can be read.
    """
    lengths = []
    for image in some_images(images, _SIZED_IMAGES):
        for item in image.objects:
            rows, columns = np.nonzero(item.mask)
            if len(rows):
                lengths.append(1 + max(np.ptp(rows), np.ptp(columns)))
    if not lengths:
        raise DataError(
            "None of the accepted masks can be read.",
            remedy="Look at the messages before this one, and at the vault's folder.",
        )
    return float(np.median(lengths))


def tuning_config(
    description: ModelDescription, settings: LearningSettings, *, length: float
) -> TrainingConfig:
    """How a model is fine-tuned: as it was trained, only shorter and more carefully.

    Parameters
    ----------
    description
        Of the model to begin with.
    settings
        Steps, rate and seed.
    length
        Of the lab's objects, see `usual_length`.
    """
    before = _trained_config(description)
    name = description.name.removesuffix(_SUFFIX) + _SUFFIX
    fitting = [frame for frame in _FRAMES if frame[2] >= _AROUND * length]
    images, targets, crop = fitting[0] if fitting else _FRAMES[-1]
    # Whole images differ in size, so that a step has room for one; smaller crops stay as they are.
    divided = before.crop is not None and before.crop >= _FRAMES[0][2]
    return dataclasses.replace(
        before,
        name=name,
        loss=dataclasses.replace(before.loss, relaxation=max(_RELAXATION, before.loss.relaxation)),
        steps=settings.steps,
        # Images come at the size at which the networks see them, so little zoom is left to learn,
        # unless they look closer from the second click on.
        zoom=(0.8, 1.25 if description.inference.zoom_side is None else 2.5),
        rate=settings.rate,
        warmup=min(20, max(1, settings.steps // 10)),
        decay=0.0,
        averaging=0.97 if settings.steps >= 100 else 0.0,
        recorded=0.5,
        kinds={"instance": 1.0, **before.kinds},
        # A lab's images are few: each example has its own picture, and objects in their own sizes.
        views=0,
        close_ups=0.0,
        collages=0.0,
        # Its logits were softened then, and g may have been the last to learn. f and g learn at
        # once: the time may be over before a second phase begins, and g is to know this f.
        soften=1.0,
        frozen=False,
        joint=True,
        images=images if divided else before.images,
        targets=targets if divided else before.targets,
        crop=crop if divided else before.crop,
        seed=settings.seed,
    )


def _trained_config(description: ModelDescription) -> TrainingConfig:
    """How a model was trained, as far as it says so."""
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    values: dict[str, Any] = {
        key: value for key, value in description.training.items() if key in known
    }
    try:
        for name, made in (("loss", LossConfig), ("dos_protocol", DosProtocol)):
            if name in values:
                values[name] = made(**values[name])
        for name in ("zoom", "iterations"):
            if name in values:
                values[name] = tuple(values[name])
    except TypeError:
        # Of another version of LiDiv: the usual settings will do.
        values = {}
    networks = {"proposal": description.proposal, "selection": description.selection}
    values |= {"name": description.name, "inference": description.inference, **networks}
    return TrainingConfig(**values)


@dataclass(frozen=True, kw_only=True)
class TuningData:
    """What a run learns from.

    Parameters
    ----------
    snapshot
        What was accepted.
    earlier
        Names of masks that an earlier run has learnt already.
    vault
        Where the snapshot's images are.
    base
        What must not be forgotten, or None.
    """

    snapshot: Snapshot
    earlier: frozenset[str]
    vault: Vault
    base: ImageSet | None

    def mixed(self, *, inference: InferenceConfig, multiple: int, seed: int) -> MixedSet:
        """Put together what is trained on; held-out images are not in it.

        Raises
        ------
        DataError
            If there is nothing to learn.
        """
        trained = self.snapshot.part(held_out=False)
        groups: dict[str, list[SnapshotImage]] = {"new": [], "earlier": []}
        for image in trained:
            is_new = any(mask.name not in self.earlier for mask in image.masks)
            times = _STEPPED if any(mask.stepped for mask in image.masks) else 1
            groups["new" if is_new else "earlier"] += [image] * times
        sets: dict[str, ImageSet] = {
            name: WithoutOutlines(SnapshotSet(images, self.vault, name=name))
            for name, images in groups.items()
            if images
        }
        if not sets:
            raise DataError(
                "There is nothing to learn from: no accepted mask outside the hold-out.",
                remedy="Annotate more images; `lidiv finetune` tells what was left out, and why.",
            )
        if self.base is not None and len(self.base):
            sets["base"] = self.base
        return MixedSet(
            [
                (AtInferenceSize(part, inference, multiple=multiple), _SHARES[name])
                for name, part in sets.items()
            ],
            seed=seed,
        )

    def trained(self) -> SnapshotSet:
        """Images with accepted masks; none of them held out."""
        return SnapshotSet(self.snapshot.part(held_out=False), self.vault, name="trained")

    def chosen(self) -> SnapshotSet:
        """Images with a mask that was chosen among alternatives; none of them held out."""
        images = [
            image
            for image in self.snapshot.part(held_out=False)
            if any(mask.rejected for mask in image.masks)
        ]
        return SnapshotSet(images, self.vault, name="chosen")


def anchor(network: nn.Module, weights: Mapping[str, Tensor], strength: float) -> None:
    """Pull a network's weights to given ones in every step (L2-SP).

    The penalty is ``strength * ||w - w0||^2``; its gradient is added where the loss's arrives, so
    that it needs no place in the loss.

    Parameters
    ----------
    network
        What is trained. Parameters that `weights` does not have, or in another shape, stay free.
    weights
        w0, a state dict.
    strength
        0 for no pull.
    """
    for name, parameter in network.named_parameters():
        origin = weights.get(name)
        if not strength or origin is None or origin.shape != parameter.shape:
            continue

        def pull(
            gradient: Tensor, parameter: Tensor = parameter, origin: Tensor = origin
        ) -> Tensor:
            away = parameter.detach() - origin.to(parameter.device)
            return gradient.add(away.to(gradient.dtype), alpha=2 * strength)

        parameter.register_hook(pull)  # type: ignore[no-untyped-call]


def finetune(
    model: Model, base: Model, data: TuningData, settings: LearningSettings, folder: Path
) -> Path:
    """Fine-tune a model; goes on where an earlier call in the same folder stopped.

    Parameters
    ----------
    model
        The weights in use, to begin with.
    base
        The weights to stay near.
    data
        What to learn from.
    settings
        How.
    folder
        Where checkpoints, log and weights go.

    Returns
    -------
    Path
        Folder of the weights.

    Raises
    ------
    DataError
        If there is nothing to learn.
    KeyboardInterrupt
        If the process was asked to end; a checkpoint is there.
    """
    inference, multiple = model.description.inference, model.proposal.multiple
    images = data.mixed(inference=inference, multiple=multiple, seed=settings.seed)
    trained = AtInferenceSize(data.trained(), inference, multiple=multiple)
    config = tuning_config(model.description, settings, length=usual_length(trained))
    checkpoint = CheckpointFolder(folder)
    checkpoint.recover()
    spent = checkpoint.read(made_for={}).seconds if checkpoint.exists else 0.0
    device = choose_device(settings.device)
    options = RunOptions(
        folder=folder,
        # fp16 would scale the loss, and the pull to the base weights would not be scaled with it.
        precision="bf16" if best_precision(device) == "bfloat16" else "no",
        cpu=device.type == "cpu",
        workers=0,
        checkpoint_every=50,
        validate_every=config.steps + 1,
        resume=checkpoint.exists,
        time_limit=max(1.0, settings.minutes * 60 - spent),
    )
    trainer = Trainer(config, options, images, None)
    trainer.begin_with(model)
    theirs, ours = base.description, model.description
    is_alike = (theirs.proposal, theirs.selection) == (ours.proposal, ours.selection)
    origin = base if is_alike else model
    anchor(trainer.proposal, _copy(origin.proposal), settings.anchor)
    if trainer.selection is not None and origin.selection is not None:
        anchor(trainer.selection, _copy(origin.selection), settings.anchor)
    weights = trainer.run()
    if trainer.interrupted:
        raise KeyboardInterrupt
    elsewhere = _elsewhere(origin, data, device)
    blend(weights, origin, settings.blend if elsewhere else min(settings.blend, _CAREFUL_BLEND))
    learn_choices(
        weights,
        AtInferenceSize(data.chosen(), inference, multiple=multiple),
        rate=_CHOICES_RATE,
        seed=settings.seed,
    )
    if elsewhere is not None:
        _confine(weights, elsewhere)
    return weights


def _elsewhere(origin: Model, data: TuningData, device: torch.device) -> Elsewhere | None:
    """What answers where images are unlike the lab's; None where they cannot be told apart."""
    known = origin.elsewhere
    others = origin.references if known is None else known.scope.others
    if others is None:
        return None
    encoder = origin.description.proposal.encoder
    predictor = Predictor(
        origin,
        None if encoder is None else build_encoder(encoder),
        device=device,
        precision=best_precision(device),
    )
    own = describe_images(predictor, data.trained(), limit=_OWN_IMAGES)
    if own is None:
        return None
    before = origin if known is None else known
    return Elsewhere(
        scope=Scope(own=own, others=others),
        proposal=before.proposal,
        selection=before.selection,
    )


def _confine(weights: Path, elsewhere: Elsewhere) -> None:
    """Say where a folder of weights does not answer; the folder is written anew."""
    model = load_model(weights)
    scope = elsewhere.scope
    told = {"own": len(scope.own), "others": len(scope.others)}
    description = dataclasses.replace(
        model.description, training={**model.description.training, "scope": told}
    )
    write_model(weights, dataclasses.replace(model, description=description, elsewhere=elsewhere))


def blend(weights: Path, origin: Model, share: float) -> None:
    """Replace trained weights by a mean of them and of those that they began with.

    On the way between the two, what was learnt comes sooner than what was known goes (Wortsman et
    al., Robust fine-tuning of zero-shot models, CVPR 2022).

    Parameters
    ----------
    weights
        Folder of the trained weights, written anew.
    origin
        Weights of the same networks.
    share
        Of the trained ones, in (0, 1].
    """
    tuned = load_model(weights)
    for network, before in (
        (tuned.proposal, origin.proposal),
        (tuned.selection, origin.selection),
    ):
        if network is None or before is None:
            continue
        began, came = before.state_dict(), network.state_dict()
        network.load_state_dict(
            {name: torch.lerp(began[name].to(value), value, share) for name, value in came.items()}
        )
    description = dataclasses.replace(
        tuned.description, training={**tuned.description.training, "blend": share}
    )
    write_model(weights, dataclasses.replace(tuned, description=description))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
