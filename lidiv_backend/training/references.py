"""The command `lidiv references`: note down what the images of a training are like.

Fine-tuning reads it: an image that is more like these than like a lab's is answered by the weights
as they came; see `lidiv_backend.scope`. `lidiv train` does it by itself at its end.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.model import load_model, weights_folder, write_model
from lidiv_backend.predictor import Predictor
from lidiv_backend.records import ImageSet, some_images
from lidiv_backend.training.command import default_data
from lidiv_backend.training.data import open_image_set

#: So many images are described unless told otherwise, spread evenly over the data set.
IMAGES = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `lidiv references`."""
    parser.add_argument("weights", help="default, paper, or a folder")
    parser.add_argument("--data", help="what it was trained on; shards:$LIDIV_DATA/train if absent")
    parser.add_argument("--images", type=int, default=IMAGES, help="so many (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run `lidiv references`."""
    if args.images < 1:
        raise BadRequestError("At least one image is described.", remedy="Raise --images.")
    images = open_image_set(args.data or default_data(), split="train")
    count = write_references(weights_folder(args.weights), images, limit=args.images)
    print(f"{args.weights}: {count} images described")
    return 0


def write_references(weights: Path, images: ImageSet, *, limit: int = IMAGES) -> int:
    """Add to a folder of weights what images are like; its version stays.

    Parameters
    ----------
    weights
        The folder.
    images
        What they were trained on.
    limit
        Describe at most so many.

    Returns
    -------
    int
        How many were described; 0 if f sees no encoder's features, and nothing is written.

    Raises
    ------
    DataError
        If none of the images can be read.
    """
    model = load_model(weights)
    if model.description.proposal.encoder is None:
        return 0
    rows = describe_images(Predictor.from_pretrained(weights), images, limit=limit)
    if rows is None:
        raise DataError(f"No image of {images.name} could be read.", remedy="Look at the data set.")
    write_model(weights, replace(model, references=rows))
    return len(rows)


def describe_images(predictor: Predictor, images: ImageSet, *, limit: int) -> torch.Tensor | None:
    """What images are like.

    Parameters
    ----------
    predictor
        Whose encoder is asked.
    images
        Of these, evenly spread.
    limit
        At most so many.

    Returns
    -------
    Tensor or None
        float32 (N, D), see `lidiv_backend.scope.describe_image`; images that cannot be read are
        left out. None if none is left.
    """
    read = tqdm(
        some_images(images, limit),
        total=min(limit, len(images)),
        desc="references",
        unit="image",
        leave=False,
    )
    rows = [predictor.describe(image.rgb) for image in read]
    return torch.stack(rows) if rows else None
