"""The command `lidiv benchmark`: how long an annotator waits, and how much memory it takes."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lidiv_backend.clicks import Click
from lidiv_backend.devices import machine
from lidiv_backend.measured import insert_measured
from lidiv_backend.predictor import ImageEmbedding, Predictor

_Result = TypeVar("_Result")

_SIZES = ((640, 480), (1280, 960), (4000, 3000))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one preset on one device for one size of image, milliseconds.

    Parameters
    ----------
    embed_median, embed_p95
        Decoded photo to embedding.
    click_median, click_p95
        Click to the mask at the image's own size, the image being embedded.
    memory
        MB: what the device holds at most (GPU), or the process held at most so far (CPU).
    """

    preset: str
    device: str
    precision: str
    threads: int
    width: int
    height: int
    embed_median: float
    embed_p95: float
    click_median: float
    click_p95: float
    memory: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `lidiv benchmark`."""
    parser.add_argument("--preset", action="append", help="default, paper or a folder; repeatable")
    parser.add_argument("--device", action="append", help="cpu, cuda; all there are if not given")
    parser.add_argument("--precision", help="float32 or bfloat16; what the device does best if not")
    parser.add_argument(
        "--size",
        action="append",
        type=_size,
        metavar="WIDTHxHEIGHT",
        help="of the photos in pixels; repeatable; three usual ones if not given",
    )
    parser.add_argument("--repeat", type=int, default=20, help="clicks for each size")
    parser.add_argument("--images", type=int, default=5, help="photos for each size")
    parser.add_argument(
        "--replay",
        action="store_true",
        help="have a GPU replay recorded work, which no GPU has tried yet",
    )
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument(
        "--insert", type=Path, metavar="PAGE", help="put the table into this page's section 'speed'"
    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write it like 640x480")
    return int(width), int(height)


def run(args: argparse.Namespace) -> int:
    """Run `lidiv benchmark`."""
    sizes = args.size or _SIZES
    devices = args.device or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    presets = args.preset or ["default"]
    timings = []
    with tqdm(total=len(devices) * len(presets) * len(sizes), desc="benchmark") as bar:
        for device in devices:
            for preset in presets:
                predictor = Predictor.from_pretrained(
                    preset,
                    device=device,
                    precision=args.precision,
                    cache_bytes=0,
                    replay=args.replay,
                )
                for width, height in sizes:
                    timings.append(
                        measure(
                            predictor,
                            preset=preset,
                            width=width,
                            height=height,
                            images=args.images,
                            repeat=args.repeat,
                        )
                    )
                    bar.update()
    text = f"{machine()}:\n\n{as_markdown(timings)}"
    print(text)
    if args.insert:
        words = [f"--preset {preset}" for preset in presets]
        words += [f"--size {width}x{height}" for width, height in args.size or ()]
        words += ["--replay"] if args.replay else []
        insert_measured(args.insert, "speed", text, command=f"lidiv benchmark {' '.join(words)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=1) + "\n")
    return 0


def measure(
    predictor: Predictor, *, preset: str, width: int, height: int, images: int, repeat: int
) -> Timing:
    """Time one preset on images of one size.

    Parameters
    ----------
    predictor
        Without a cache, so that every embedding is computed.
    preset
        Its name, for the table.
    width, height
        Pixels.
    images
        How many different images are embedded.
    repeat
        How many clicks are made, 1 to 5 on an object, each with the mask before.
    """
    rng = np.random.default_rng(0)
    photos = [_photo(rng, width, height) for _ in range(images)]
    on_gpu = predictor.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    # The first pass pays for what is set up once.
    embedding = predictor.embed(photos[0])
    predictor.predict(embedding, [_click(rng, width, height)])
    embeds = [_timed(partial(predictor.embed, photo), on_gpu)[0] for photo in photos]
    clicks = []
    previous: NDArray[np.bool_] | None = None
    made: list[Click] = []
    for number in range(repeat):
        if number % 5 == 0:
            made, previous = [], None
        made = [*made, _click(rng, width, height)]
        click = partial(_selected, predictor, embedding, made, previous)
        milliseconds, previous = _timed(click, on_gpu)
        clicks.append(milliseconds)
    if on_gpu:
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return Timing(
        preset=preset,
        device=torch.cuda.get_device_name() if on_gpu else "CPU",
        precision=predictor.precision,
        threads=torch.get_num_threads(),
        width=width,
        height=height,
        embed_median=float(np.median(embeds)),
        embed_p95=float(np.percentile(embeds, 95)),
        click_median=float(np.median(clicks)),
        click_p95=float(np.percentile(clicks, 95)),
        memory=memory,
    )


def as_markdown(timings: Sequence[Timing]) -> str:
    """A table for people."""
    heads = ("preset", "device", "precision", "image", "embed, ms", "95 %", "click, ms", "95 %")
    lines = [f"| {' | '.join(heads)} | memory, MB |", "|---" * 9 + "|"]
    lines += [
        f"| {t.preset} | {t.device} | {t.precision} | {t.width} x {t.height} | "
        f"{t.embed_median:.1f} | {t.embed_p95:.1f} | {t.click_median:.1f} | {t.click_p95:.1f} | "
        f"{t.memory:.0f} |"
        for t in timings
    ]
    return "\n".join(lines)


def _selected(
    predictor: Predictor,
    embedding: ImageEmbedding,
    clicks: Sequence[Click],
    previous: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    return predictor.predict(embedding, clicks, previous)[0].mask


def _timed(work: Callable[[], _Result], on_gpu: bool) -> tuple[float, _Result]:
    """Milliseconds, by CUDA's events on a GPU, and what came out."""
    if not on_gpu:
        started = time.perf_counter()
        result = work()
        return (time.perf_counter() - started) * 1000, result
    begin, end = torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)
    begin.record()
    result = work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)), result


def _photo(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Smooth noise, so that masks are neither empty nor everything."""
    small = torch.from_numpy(rng.random((1, 3, 24, 32), dtype=np.float32))
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    return np.ascontiguousarray((large[0] * 255).byte().permute(1, 2, 0).numpy())


def _click(rng: np.random.Generator, width: int, height: int) -> Click:
    return Click(
        x=float(rng.uniform(0, width - 1)),
        y=float(rng.uniform(0, height - 1)),
        positive=bool(rng.random() < 0.7),
    )
