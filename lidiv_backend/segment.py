"""The command `lidiv segment`: the same engine without Label Studio."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from lidiv_backend.clicks import Click
from lidiv_backend.drawing import contact_sheet, overlay
from lidiv_backend.errors import BadClickError, BadRequestError
from lidiv_backend.images import read_rgb
from lidiv_backend.predictor import LOOKED_AHEAD, Predictor


def parse_click(text: str) -> Click:
    """Read ``120,80`` as a positive and ``-200,90`` as a negative click.

    Raises
    ------
    BadClickError
        If it is neither.
    """
    negative = text.startswith("-")
    try:
        x, y = (float(part) for part in text.removeprefix("-").split(","))
    except ValueError:
        raise BadClickError(
            f"The click {text!r} is not two numbers.",
            remedy="Write x,y in pixels from the top left, with a minus in front for a negative "
            "click: --click 120,80 --click -200,90",
        ) from None
    return Click(x=x, y=y, positive=not negative)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `lidiv segment`."""
    parser.add_argument("image", type=Path, help="photo")
    parser.add_argument(
        "--click",
        action="append",
        required=True,
        metavar="[-]X,Y",
        help="pixels from the top left, negative with a minus in front; repeat for more",
    )
    parser.add_argument("--out", type=Path, default=Path("proposals.png"), help="picture to write")
    parser.add_argument("--mask", type=Path, help="also write the selected mask, 0 and 255")
    parser.add_argument("--preset", default="default", help="default, paper or a folder of weights")


def run(args: argparse.Namespace) -> int:
    """Run `lidiv segment`."""
    clicks = [parse_click(text) for text in args.click]
    rgb = read_rgb(args.image)
    predictor = Predictor.from_pretrained(args.preset)
    image = predictor.embed(rgb)
    proposals = predictor.predict(image, clicks)
    proposals += predictor.look_ahead(image, clicks, proposals)
    tiles = [("clicks", overlay(rgb, clicks=clicks))]
    for number, proposal in enumerate(proposals, start=1):
        share = proposal.mask.mean()
        source = "a click ahead" if proposal.head == LOOKED_AHEAD else f"head {proposal.head}"
        print(
            f"proposal {number} of {len(proposals)}: score {proposal.score:.3f}, "
            f"{source}, {share:.1%} of the image"
        )
        name = "selected" if number == 1 else f"alternative {number}"
        tiles.append((f"{name}: {proposal.score:.2f}", overlay(rgb, proposal.mask, clicks)))
    _write(args.out, contact_sheet(tiles, columns=min(4, len(tiles)))[:, :, ::-1])
    print(f"{args.out} ({predictor.version})")
    if args.mask is not None:
        _write(args.mask, proposals[0].mask.astype("uint8") * 255)
        print(args.mask)
    return 0


def _write(path: Path, picture: cv2.typing.MatLike) -> None:
    try:
        written = cv2.imwrite(str(path), picture)
    except cv2.error:
        written = False
    if not written:
        raise BadRequestError(
            f"{path} could not be written.", remedy="Name a .png in a folder that exists."
        )
