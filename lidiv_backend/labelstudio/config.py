"""Label configurations: which tags a project has for clicks, and which for masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.control_tags import ControlTag

from lidiv_backend.errors import BadRequestError


class LabelConfigError(BadRequestError):
    """The label configuration lacks a tag that is needed, or is no XML."""

    kind = "label config"


class UnknownLabelError(BadRequestError):
    """A click carries a label that no mask can have."""

    kind = "unknown label"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTag:
    """A tag whose regions carry labels.

    Parameters
    ----------
    name
        The tag's name.
    labels
        The labels it offers; None where they come from the task's data.
    """

    name: str
    labels: frozenset[str] | None

    def offers(self, label: str) -> bool:
        """Tell whether a region of this tag can carry a label."""
        return self.labels is None or label in self.labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a mask goes.

    Parameters
    ----------
    to_name
        Name of the image tag.
    brush
        Name of the ``Brush`` or ``BrushLabels`` tag.
    labels
        Name of the ``Labels`` tag of its own; None where the brush carries the label.
    label
        The label; None for a region without one.
    """

    to_name: str
    brush: str
    labels: str | None
    label: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTags:
    """One image tag, and the tags that belong to it.

    Parameters
    ----------
    name
        Name of the ``Image`` tag.
    data_key
        The key of the task's data that holds the image's address.
    brush_labels
        ``BrushLabels`` tags.
    brushes
        Names of ``Brush`` tags.
    labels
        ``Labels`` tags, which label what the others draw.
    keypoints
        Names of all ``KeyPoint`` and ``KeyPointLabels`` tags.
    smart_keypoints
        Those of them that ask a backend.
    """

    name: str
    data_key: str
    brush_labels: tuple[LabelTag, ...]
    brushes: tuple[str, ...]
    labels: tuple[LabelTag, ...]
    keypoints: frozenset[str]
    smart_keypoints: frozenset[str]

    def target(self, label: str | None) -> Target:
        """Choose the tags that the answer to a click is made for.

        Parameters
        ----------
        label
            The click's label; None where no label was picked.

        Raises
        ------
        UnknownLabelError
            If no brush of this image can carry the label.
        """
        if label is None:
            return self._unlabelled_target()
        for brush in self.brush_labels:
            if brush.offers(label):
                return Target(to_name=self.name, brush=brush.name, labels=None, label=label)
        if self.brushes:
            for tag in self.labels:
                if tag.offers(label):
                    return Target(
                        to_name=self.name, brush=self.brushes[0], labels=tag.name, label=label
                    )
        offered = sorted(
            {known for tag in (*self.brush_labels, *self.labels) for known in tag.labels or ()}
        )
        raise UnknownLabelError(
            f"No brush of the image {self.name!r} can carry the label {label!r}; "
            f"it has {', '.join(map(repr, offered)) or 'none'}.",
            remedy="Give the clicks and the brush the same labels in the label config.",
        )

    def _unlabelled_target(self) -> Target:
        if self.brushes:
            return Target(to_name=self.name, brush=self.brushes[0], labels=None, label=None)
        brush = self.brush_labels[0]
        if brush.labels is not None and len(brush.labels) == 1:
            (only,) = brush.labels
            return Target(to_name=self.name, brush=brush.name, labels=None, label=only)
        raise UnknownLabelError(
            f"The click has no label, and <BrushLabels name={brush.name!r}> needs one.",
            remedy="Pick a label before clicking.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig:
    """A label configuration that the backend can work with.

    Parameters
    ----------
    images
        Image tags that have both a brush and key points; never empty.
    """

    images: tuple[ImageTags, ...]

    def image(self, name: str) -> ImageTags:
        """Find the image tag that a result belongs to.

        Raises
        ------
        LabelConfigError
            If there is none of this name with a brush and key points.
        """
        for image in self.images:
            if image.name == name:
                return image
        known = ", ".join(repr(image.name) for image in self.images)
        raise LabelConfigError(
            f"The label config has no image {name!r} with a brush and key points; it has {known}.",
            remedy="Reload the page in Label Studio; the label config may have changed.",
        )


@lru_cache(maxsize=64)
def parse_label_config(xml: str) -> LabelConfig:
    """Read a label configuration.

    Parameters
    ----------
    xml
        As Label Studio sends it, with any names of tags.

    Returns
    -------
    LabelConfig
        Its images, each with the tags that draw on it.

    Raises
    ------
    LabelConfigError
        If it is no XML, or if no image has both a brush and key points; the message says which
        tag is missing.
    """
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise LabelConfigError(
            "The label config declares a document type, which none needs.",
            remedy="Remove the <!DOCTYPE> from the label config.",
        )
    try:
        interface = LabelInterface(xml)
    # The SDK's parser has no common error: missing attributes, for one, raise KeyError.
    except Exception as error:
        raise LabelConfigError(
            f"The label config cannot be read: {error}.",
            remedy="Correct it in the project's settings.",
        ) from error
    controls = tuple(interface.controls or ())
    images = tuple(
        _image_tags(str(tag.name), str(tag.value or ""), controls)
        for tag in (interface.objects or ())
        if tag.tag.lower() == "image"
    )
    usable = tuple(
        image for image in images if image.keypoints and (image.brushes or image.brush_labels)
    )
    if not usable:
        problem, addition = _missing(images)
        raise LabelConfigError(
            f"The label config has {problem}.",
            remedy=f"Add {addition} in the project's settings.",
        )
    return LabelConfig(images=usable)


def _missing(images: tuple[ImageTags, ...]) -> tuple[str, str]:
    """Say what a label config lacks, and what to add."""
    name = images[0].name if images else "image"
    brush = f'<Brush name="brush" toName="{name}"/>'
    keypoint = f'<KeyPoint name="kp" toName="{name}" smart="true" smartOnly="true"/>'
    if not images:
        return "no <Image> tag", '<Image name="image" value="$image" zoom="true"/>'
    if not any(image.brushes or image.brush_labels for image in images):
        return "no <Brush> or <BrushLabels> tag, so there is nowhere to put a mask", brush
    if not any(image.keypoints for image in images):
        return "no <KeyPoint> or <KeyPointLabels> tag, so nobody can click", keypoint
    return "no image with both a brush and key points", f"{brush} and {keypoint}"


def _image_tags(name: str, value: str, controls: Iterable[ControlTag]) -> ImageTags:
    mine = [tag for tag in controls if name in (tag.to_name or ())]

    def named(*kinds: str) -> list[ControlTag]:
        return [tag for tag in mine if tag.tag.lower() in kinds]

    keypoints = named("keypoint", "keypointlabels")
    return ImageTags(
        name=name,
        data_key=value.removeprefix("$"),
        brush_labels=tuple(_label_tag(tag) for tag in named("brushlabels")),
        brushes=tuple(str(tag.name) for tag in named("brush")),
        labels=tuple(_label_tag(tag) for tag in named("labels")),
        keypoints=frozenset(str(tag.name) for tag in keypoints),
        smart_keypoints=frozenset(
            str(tag.name)
            for tag in keypoints
            if str((tag.attr or {}).get("smart", "")).lower() == "true"
        ),
    )


def _label_tag(tag: ControlTag) -> LabelTag:
    # Labels written as value="$key" come with each task.
    dynamic = str((tag.attr or {}).get("value", "")).startswith("$")
    return LabelTag(name=str(tag.name), labels=None if dynamic else frozenset(tag.labels or ()))
