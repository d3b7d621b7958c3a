from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from lidiv_backend.errors import DataError
from lidiv_backend.training.data import SbdSet, VocSet, open_image_set
from lidiv_backend.training.data.voc import VOC_CLASSES

Rgb = NDArray[np.uint8]


@pytest.fixture
def numbers() -> NDArray[np.uint8]:
    """Two objects, the second with a void border."""
    numbers = np.zeros((12, 16), dtype=np.uint8)
    numbers[1:4, 1:5] = 1
    numbers[5:11, 6:14] = 255
    numbers[6:10, 7:13] = 2
    return numbers


def save_palette(path: Path, numbers: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers, "P")
    image.putpalette([(7 * value) % 256 for value in range(768)])
    image.save(path)


@pytest.fixture
def voc(tmp_path: Path, rgb: Rgb, numbers: NDArray[np.uint8]) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    classes = np.choose(np.minimum(numbers, 3), [0, 15, 8, 255]).astype(np.uint8)
    for name in ("2007_1", "2007_2"):
        save_palette(root / "SegmentationObject" / f"{name}.png", numbers)
        save_palette(root / "SegmentationClass" / f"{name}.png", classes)
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(rgb).save(root / "JPEGImages" / f"{name}.jpg")
    splits = root / "ImageSets" / "Segmentation"
    splits.mkdir(parents=True)
    (splits / "train.txt").write_text("2007_1\n")
    (splits / "val.txt").write_text("2007_2\n2007_3\n")
    (splits / "trainval.txt").write_text("2007_1\n2007_2\n2007_3\n")
    return tmp_path


def test_voc_objects_have_classes_and_an_ignored_border(
    voc: Path, numbers: NDArray[np.uint8]
) -> None:
    data = VocSet(voc, split="train")
    assert len(data) == 1
    image = data[0]
    assert [(item.name, item.label) for item in image.objects] == [
        ("2007_1:1", "person"),
        ("2007_1:2", "cat"),
    ]
    for value, item in enumerate(image.objects, start=1):
        np.testing.assert_array_equal(item.mask, numbers == value)
        assert item.ignore is not None
        np.testing.assert_array_equal(item.ignore, numbers == 255)


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_from_any_of_its_folders(voc: Path, below: str) -> None:
    assert len(open_image_set(f"voc:{voc / below}", split="val")) == 2
    assert len(open_image_set(f"voc:{voc / below}?year=2012")) == 3


def test_voc_that_is_not_there_is_refused(voc: Path) -> None:
    for spec, split in (
        (f"voc:{voc}", "test"),
        (f"voc:{voc}?year=2010", "val"),
        (f"voc:{voc}?year=1999", "val"),
        (f"voc:{voc}/gone", "val"),
    ):
        with pytest.raises(DataError, match="does not hold Pascal VOC"):
            open_image_set(spec, split=split)
    with pytest.raises(DataError, match="2007_3"):
        VocSet(voc, split="val")[1]


def test_the_classes_are_vocs() -> None:
    # The numbers that everybody knows by heart.
    assert len(VOC_CLASSES) == 20
    assert VOC_CLASSES.index("person") == 14
    assert VOC_CLASSES.index("cat") == 7


@pytest.fixture
def sbd(tmp_path: Path, rgb: Rgb, numbers: NDArray[np.uint8]) -> Path:
    root = tmp_path / "benchmark_RELEASE" / "dataset"
    for folder in ("img", "cls", "inst"):
        (root / folder).mkdir(parents=True)
    for name in ("2008_1", "2008_2"):
        Image.fromarray(rgb).save(root / "img" / f"{name}.jpg")
        record = {
            "Segmentation": np.where(numbers == 255, 0, numbers),
            "Categories": np.array([[15], [8]], dtype=np.uint8),
        }
        savemat(root / "inst" / f"{name}.mat", {"GTinst": record}, do_compression=True)
    (root / "inst" / "2008_2.mat").write_bytes(b"damaged" * 100)
    (root / "train.txt").write_text("2008_1\n2008_2\n")
    (root / "val.txt").write_text("2008_1\n")
    return tmp_path


@pytest.mark.parametrize("below", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_sbd_objects(sbd: Path, below: str, numbers: NDArray[np.uint8]) -> None:
    data = open_image_set(f"sbd:{sbd / below}", split="val")
    assert len(data) == 1
    image = data[0]
    assert [(item.name, item.label) for item in image.objects] == [
        ("2008_1:1", "person"),
        ("2008_1:2", "cat"),
    ]
    for value, item in enumerate(image.objects, start=1):
        np.testing.assert_array_equal(item.mask, numbers == value)


def test_sbd_that_is_damaged_or_not_there(sbd: Path) -> None:
    data = SbdSet(sbd, split="train")
    assert len(data) == 2
    assert len(SbdSet(sbd)) == 3
    with pytest.raises(DataError, match="2008_2"):
        data[1]
    with pytest.raises(DataError, match="Semantic Boundaries"):
        SbdSet(sbd, split="test")
    with pytest.raises(DataError, match="Semantic Boundaries"):
        SbdSet(sbd / "gone")
