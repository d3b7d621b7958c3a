"""Pictures for the documentation, taken while the browser tests go through what they show.

``make pictures`` says by an environment variable where they go; otherwise none are taken.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

VARIABLE = "LIDIV_PICTURES"
#: Width in pixels, and how large a file may be.
WIDTH, MAX_BYTES = 1100, 190_000


def picture(page: Page, name: str) -> None:
    """Keep what the page shows as ``<name>.png``, reduced to what a page of text can bear."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    # Without the list of tasks at the left.
    seen = {"x": 240, "y": 0, "width": 1360, "height": 1000}
    shown = Image.open(io.BytesIO(page.screenshot(clip=seen))).convert("RGB")
    shown = shown.resize((WIDTH, round(shown.height * WIDTH / shown.width)), Image.Resampling.BOX)
    for colours in (256, 128, 96, 64, 48, 32, 16):
        content = io.BytesIO()
        shown.quantize(colours, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() <= MAX_BYTES:
            break
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{name}.png").write_bytes(content.getvalue())
