"""The gate: a candidate goes live only if annotators need fewer clicks with it.

Candidate and model in use are measured side by side by simulated annotators, on the images that are
held out and on a base set, each image weighing the same. Better there means that the whole
interval of the paired difference is below 0; not worse here means that neither the mean is more
than a tolerance above 0 nor the whole interval above it. Several annotators click on every object,
each somewhere else: a lab has few images at first, and with one click sequence for each object
chance says more about an image than the models do.

Held-out masks are as good as the lab's: where masks and images were mixed up, who learns to draw
any blob around a click needs fewer clicks on them, too. So the candidate also segments the masks of
each held-out image on another one. If it does that as well as on their own image, the masks say
nothing about the images, no clicks are counted, and nothing is promoted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from lidiv_backend.evaluation.measures import (
    Interval,
    bootstrap_mean,
    iou_after,
    number_of_clicks,
)
from lidiv_backend.evaluation.protocols import (
    MAX_CLICKS,
    ClickProtocol,
    Method,
    ProtocolSettings,
)
from lidiv_backend.evaluation.results import Result
from lidiv_backend.evaluation.runner import measure
from lidiv_backend.records import AnnotatedImage, ImageSet, choose_images

#: IoU at which clicks are counted.
TARGET = 0.85
#: The gate counts the clicks to each of these and takes the mean: with one threshold alone, whether
#: an object just reaches it decides more than the models do.
GATE_TARGETS = (0.80, TARGET, 0.90)
#: With fewer images held out, nothing is promoted by itself.
LEAST_IMAGES = 5
#: So many clicks more on the base set are not yet worse.
TOLERANCE = 0.1
#: After so many clicks an annotator has long taken the brush. A few objects that neither model ever
#: finds would otherwise drown all others.
PATIENCE = 10
#: There are so many simulated annotators that they annotate about this number of images in all: few
#: images need more of them, and with many images more would take too long.
ANNOTATED_IMAGES = 40
_SETTINGS = ProtocolSettings(protocol=ClickProtocol.CENTRE, actions=False)
# After so many clicks it is asked whether masks fit their images.
_FIT_CLICKS = 3
_FIT_SETTINGS = replace(_SETTINGS, max_clicks=_FIT_CLICKS, stop_at=TARGET)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Clicks of two models on one data set.

    Parameters
    ----------
    data_set
        Its name.
    images, objects
        How many were measured.
    candidate, in_use
        Mean number of clicks to the targets.
    difference
        Candidate minus model in use; below 0 where the candidate needs fewer.
    per_image
        Mean clicks of each image: candidate, model in use.
    targets
        IoU at which clicks were counted; of several, the mean.
    """

    data_set: str
    images: int
    objects: int
    candidate: float
    in_use: float
    difference: Interval
    per_image: tuple[tuple[float, float], ...] = ()
    targets: tuple[float, ...] = (TARGET,)

    @property
    def goal(self) -> str:
        """The targets, for people."""
        *most, last = (f"{100 * target:.0f}" for target in self.targets)
        return f"{', '.join(most)} and {last} % IoU" if most else f"{last} % IoU"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Comparison:
        """Read what `Verdict.to_json` wrote; the first verdicts said less."""
        pairs = tuple((float(ours), float(theirs)) for ours, theirs in values.get("per_image", ()))
        targets = tuple(float(target) for target in values.get("targets", (TARGET,)))
        read = {"difference": Interval(**values["difference"]), "per_image": pairs}
        return cls(**{**values, **read, "targets": targets})


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether masks belong to their images.

    Parameters
    ----------
    images
        How many were measured.
    own, other
        Mean IoU after three clicks on the own image, and on another one.
    difference
        Own minus other, by image.
    """

    images: int
    own: float
    other: float
    difference: Interval

    @property
    def holds(self) -> bool:
        """Whether it is certain that masks fit their own images better."""
        return self.difference.low > 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says.

    Parameters
    ----------
    passed
        Whether the candidate may go live.
    text
        Why, for people.
    held_out, base
        The numbers; None where nothing was measured.
    fit
        Whether the held-out masks belong to their images; None where that was not measured.
    """

    passed: bool
    text: str
    held_out: Comparison | None
    base: Comparison | None
    fit: Fit | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for the database."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """Read what `to_json` wrote."""
        parts = {
            name: None if values[name] is None else Comparison.from_json(values[name])
            for name in ("held_out", "base")
        }
        fit = values.get("fit")
        if fit is not None:
            fit = Fit(**{**fit, "difference": Interval(**fit["difference"])})
        return cls(passed=values["passed"], text=values["text"], fit=fit, **parts)


@dataclass(frozen=True, kw_only=True)
class BaseSet:
    """What must not get worse.

    Parameters
    ----------
    images
        The data set; None if there is none.
    about
        What it is, for the verdict.
    required
        Whether a person asked for it: then nothing is promoted where it cannot be measured.
    """

    images: ImageSet | None
    about: str
    required: bool = False


def judge(
    candidate: Method,
    in_use: Method,
    *,
    held_out: ImageSet,
    base: BaseSet,
    images: int,
    objects: int,
) -> Verdict:
    """Compare a candidate with the model in use.

    Parameters
    ----------
    candidate, in_use
        The models.
    held_out
        Images of the lab that the candidate was not trained on.
    base
        What it must not have forgotten.
    images, objects
        Of each set, at most so many images are measured, and of each image so many objects.

    Returns
    -------
    Verdict
    """

    def compared(data_set: ImageSet | None) -> Comparison | None:
        if data_set is None or not len(data_set):
            return None
        return compare(
            candidate,
            in_use,
            data_set,
            images=images,
            objects=objects,
            max_clicks=PATIENCE,
            targets=GATE_TARGETS,
            annotators=math.ceil(ANNOTATED_IMAGES / min(len(data_set), images)),
        )

    fit = None
    if min(len(held_out), images) >= LEAST_IMAGES:
        fit = measure_fit(candidate, held_out, images=images, objects=objects)
    if fit is not None and fit.images >= LEAST_IMAGES and not fit.holds:
        # No number of clicks on such masks would say anything.
        reason = (
            "Kept, not promoted: the accepted masks fit other images as well as their own (IoU "
            f"after {_FIT_CLICKS} clicks {fit.own:.2f} on the own image, {fit.other:.2f} on "
            "another). Were masks and images mixed up? Where all images show the same things at "
            "the same places, this cannot be told, and a person has to promote it."
        )
        return Verdict(passed=False, text=reason, held_out=None, base=None, fit=fit)
    here, there = compared(held_out), compared(base.images)
    told = [_tell(here, f"On the {_count(here)} held out") if here else "No image is held out."]
    if there is not None:
        told.append(_tell(there, f"On {base.about}"))
    elif base.images is not None:
        told.append(f"On {base.about} nothing could be measured.")
    else:
        told.append(f"{base.about}.")
    passed = False
    if here is None or here.images < LEAST_IMAGES:
        reason = (
            f"Kept, not promoted: only {0 if here is None else here.images} images are held out, "
            f"and at least {LEAST_IMAGES} are needed to tell."
        )
    elif not here.difference.high < 0:
        reason = "Kept, not promoted: it does not need fewer clicks than the model in use."
    elif there is None and base.required:
        reason = (
            "Kept, not promoted: whether it forgot anything could not be measured. Can the images "
            "of LIDIV_BASE_DATA be read?"
        )
    elif there is not None and is_worse(there):
        reason = "Kept, not promoted: it forgot something that the model in use knows."
    else:
        passed = True
        reason = "Promoted: it needs fewer clicks than the model in use."
    text = " ".join([reason, *told])
    return Verdict(passed=passed, text=text, held_out=here, base=there, fit=fit)


def is_worse(comparison: Comparison) -> bool:
    """Whether a candidate lost something."""
    return comparison.difference.mean > TOLERANCE or comparison.difference.low > 0


def compare(
    candidate: Method,
    in_use: Method,
    data_set: ImageSet,
    *,
    images: int,
    objects: int,
    max_clicks: int = MAX_CLICKS,
    targets: Sequence[float] = (TARGET,),
    annotators: int | None = None,
) -> Comparison | None:
    """Count the clicks of two models.

    Parameters
    ----------
    candidate, in_use
        The models.
    data_set
        On what.
    images, objects
        At most so many images, and of each so many objects.
    max_clicks
        At most so many clicks on an object; one that is never reached counts so many.
    targets
        IoU at which clicks are counted; of several, their mean counts.
    annotators
        So many mark each object, with clicks drawn by Eq. 8, the same in every comparison of the
        same masks; None for one who clicks at the centre of the larger error.

    Returns
    -------
    Comparison or None
        None if no object could be measured. An object that one of the models fails on with an
        error counts as never reached.
    """
    limited = _Limited(data_set, objects)
    indices = choose_images(len(data_set), images)
    protocol = ClickProtocol.CENTRE if annotators is None else ClickProtocol.SAMPLED
    settings = replace(_SETTINGS, protocol=protocol, max_clicks=max_clicks, stop_at=max(targets))
    seeds = range(annotators or 1)
    counts = [
        _clicks(
            measure(method, limited, label="", settings=(settings,), seeds=seeds, indices=indices),
            targets,
            max_clicks=max_clicks,
        )
        for method in (candidate, in_use)
    ]
    everything = sorted({*counts[0], *counts[1]})
    if not everything:
        return None
    worst = float(max_clicks)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for key in everything:
        both = counts[0].get(key, worst), counts[1].get(key, worst)
        pairs.setdefault(key[0], []).append(both)
    # Objects of one image are alike; each image is one observation.
    means = np.array([np.mean(values, axis=0) for values in pairs.values()])
    return Comparison(
        data_set=data_set.name,
        images=len(means),
        objects=len({key[:2] for key in everything}),
        candidate=float(means[:, 0].mean()),
        in_use=float(means[:, 1].mean()),
        difference=mean_of_few(means[:, 0] - means[:, 1]),
        per_image=tuple((float(ours), float(theirs)) for ours, theirs in means),
        targets=tuple(targets),
    )


def mean_of_few(values: NDArray[np.float64]) -> Interval:
    """Mean with a 95 % interval that holds for few values, too.

    The bootstrap takes the spread of the values at hand for that of all there could be: of five,
    its intervals hold the mean in 84 % of cases. Student's t says by how much to widen them.

    Parameters
    ----------
    values
        float (N,), one for each image.

    Returns
    -------
    Interval
    """
    interval = bootstrap_mean(values)
    number = len(values)
    if number < 2:
        return interval
    tail = 0.975
    wider = stdtrit(number - 1, tail) / ndtri(tail) * math.sqrt(number / (number - 1))
    return replace(
        interval,
        low=interval.mean - wider * (interval.mean - interval.low),
        high=interval.mean + wider * (interval.high - interval.mean),
    )


def measure_fit(candidate: Method, data_set: ImageSet, *, images: int, objects: int) -> Fit | None:
    """Segment masks on their own image and on another one.

    Parameters
    ----------
    candidate
        The model.
    data_set
        Images with masks.
    images, objects
        At most so many images, and of each so many objects.

    Returns
    -------
    Fit or None
        None where fewer than two images could be measured both ways.
    """
    indices = choose_images(len(data_set), images)
    limited = _Limited(data_set, objects)
    means: list[dict[str, float]] = []
    for given in (limited, _Mismatched(limited, indices)):
        found: dict[str, list[float]] = {}
        for entry in measure(
            candidate, given, label="", settings=(_FIT_SETTINGS,), indices=indices
        ):
            if isinstance(entry, Result):
                iou = iou_after(entry.trace, _FIT_CLICKS)
                found.setdefault(entry.key.image, []).append(iou)
        means.append({image: float(np.mean(ious)) for image, ious in found.items()})
    own, other = means
    pairs = np.array([(own[image], other[image]) for image in own if image in other])
    if len(pairs) < 2:
        return None
    return Fit(
        images=len(pairs),
        own=float(pairs[:, 0].mean()),
        other=float(pairs[:, 1].mean()),
        difference=mean_of_few(pairs[:, 0] - pairs[:, 1]),
    )


def with_masks_of(image: AnnotatedImage, other: AnnotatedImage) -> AnnotatedImage:
    """Give an image the masks of another one, brought to its size.

    Parameters
    ----------
    image
        Keeps its name and its pixels.
    other
        Gives its masks, those left out of which nothing remains.
    """
    height, width = image.rgb.shape[:2]
    objects = []
    for item in other.objects:
        mask = cv2.resize(
            item.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
        ).astype(bool)
        if mask.any():
            objects.append(replace(item, mask=mask, ignore=None, clicks=(), rejected=()))
    return replace(image, objects=tuple(objects))


class _Mismatched:
    """Chosen images, each with the masks of the next one."""

    def __init__(self, base: ImageSet, indices: Sequence[int]) -> None:
        self.name = base.name
        self._base = base
        self._next = dict(zip(indices, [*indices[1:], *indices[:1]], strict=True))

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return with_masks_of(self._base[index], self._base[self._next[index]])


def _clicks(
    entries: Iterable[object], targets: Sequence[float], *, max_clicks: int
) -> dict[tuple[str, str, int], float]:
    return {
        (entry.key.image, entry.key.object, entry.key.seed): float(
            np.mean([number_of_clicks(entry.trace, each, maximum=max_clicks) for each in targets])
        )
        for entry in entries
        if isinstance(entry, Result)
    }


class _Limited:
    """A data set with so many objects of each image, always the same ones."""

    def __init__(self, base: ImageSet, objects: int) -> None:
        self.name = base.name
        self._base = base
        self._objects = objects

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = self._base[index]
        # By what they are: the names of regions are random, and the same masks get others. Clicks
        # are drawn by the name.
        named = [
            (hashlib.sha256(np.packbits(item.mask).tobytes()).hexdigest(), item)
            for item in image.objects
        ]
        chosen = sorted(named, key=lambda pair: pair[0])[: self._objects]
        return replace(
            image,
            objects=tuple(
                replace(item, name=f"{number} {digest[:16]}")
                for number, (digest, item) in enumerate(chosen)
            ),
        )


def _count(comparison: Comparison) -> str:
    return f"{comparison.images} images ({comparison.objects} objects)"


def _tell(comparison: Comparison, where: str) -> str:
    difference = comparison.difference
    return (
        f"{where} it needs {comparison.candidate:.2f} clicks to {comparison.goal}, the "
        f"model in use {comparison.in_use:.2f} (difference {difference.mean:+.2f}, 95 % interval "
        f"{difference.low:+.2f} to {difference.high:+.2f})."
    )
