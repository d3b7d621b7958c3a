from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.errors import DataError
from lidiv_backend.records import AnnotatedImage, ImageSet
from lidiv_backend.training.data import (
    ImageSetSpec,
    hash_split,
    known_image_sets,
    open_image_set,
    register_image_set,
)
from lidiv_backend.training.data import spec as spec_module


class NoImages:
    name = "none"

    def __init__(self, spec: ImageSetSpec) -> None:
        self.spec = spec

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> AnnotatedImage:
        raise IndexError(index)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_module, "_REGISTRY", dict(spec_module._REGISTRY))


@pytest.mark.parametrize("text", ["nothing", "nix:/a", "", ":/a", "/a/b"])
def test_unknown_kinds_are_answered_with_the_known_ones(text: str) -> None:
    with pytest.raises(DataError) as caught:
        open_image_set(text)
    for kind in ("coco", "folder", "labelstudio", "sbd", "shards", "voc"):
        assert f"{kind}:" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["folder:", "folder:/a,/b", "coco:/a", "labelstudio:/a", "shards:/a,/b", "voc:", "sbd:"]
)
def test_the_number_of_paths_is_checked(text: str) -> None:
    with pytest.raises(DataError, match="needs"):
        open_image_set(text)


@pytest.mark.parametrize("kind", ["folder", "shards", "voc", "sbd"])
def test_unknown_options_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match="colour"):
        open_image_set(f"{kind}:/a?colour=blue")


@pytest.mark.usefixtures("registry")
def test_a_registered_reader_is_opened_with_what_was_typed() -> None:
    register_image_set("mine", NoImages, usage="mine:/folder")
    data: ImageSet = open_image_set("mine:~/a,/b?x=1&y=", split="val")
    assert isinstance(data, NoImages)
    assert data.spec.paths == (Path("~/a").expanduser(), Path("/b"))
    assert dict(data.spec.options) == {"x": "1", "y": ""}
    assert data.spec.split == "val"
    assert "mine:/folder" in known_image_sets()


@pytest.mark.usefixtures("registry")
def test_a_name_is_given_once() -> None:
    register_image_set("mine", NoImages, usage="mine:/folder")
    register_image_set("mine", NoImages, usage="mine:/folder")
    with pytest.raises(ValueError, match="already"):
        register_image_set("folder", NoImages, usage="folder:/other")


def test_one_image_in_ten_is_held_out() -> None:
    share = np.mean([hash_split(f"image {number}") == "val" for number in range(5000)])
    assert share == pytest.approx(0.1, abs=0.02)
    # Written down, since a hash that changes would leak what was held out.
    held_out = [number for number in range(60) if hash_split(str(number)) == "val"]
    assert held_out == [0, 7, 9, 10, 33, 40, 44, 51, 57, 59]
