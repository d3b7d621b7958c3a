from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from lidiv_backend import photos
from lidiv_backend.errors import LidivError
from lidiv_backend.photos import PHOTOS, write_photos


def test_at_least_six_photos(tmp_path: Path) -> None:
    written = write_photos(tmp_path / "photos")
    assert len(written) == len(PHOTOS) >= 6
    for path in written:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert min(image.size) >= 256


def test_colours_are_kept(tmp_path: Path) -> None:
    coffee = next(path for path in write_photos(tmp_path) if path.stem == "coffee")
    difference = np.asarray(Image.open(coffee)).astype(int) - skimage.data.coffee()
    assert abs(difference).mean() < 5


def test_present_photos_are_left_alone(tmp_path: Path) -> None:
    first = write_photos(tmp_path)[0]
    first.write_bytes(b"mine")
    write_photos(tmp_path)
    assert first.read_bytes() == b"mine"


def test_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LidivError, match="pip install"):
        write_photos(tmp_path)
