from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lidiv_backend.errors import DataError
from lidiv_backend.training.data import FolderSet, open_image_set

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def save(path: Path, array: NDArray[np.generic], **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_masks_are_found_by_name(tmp_path: Path, rgb: Rgb, square: Mask) -> None:
    save(tmp_path / "images" / "one.tif", rgb)
    save(tmp_path / "masks" / "one.png", square)
    save(tmp_path / "images" / "two.5.tif", 255 - rgb)
    save(tmp_path / "masks" / "two.5.png", ~square)
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "images" / "._one.tif").write_bytes(b"")
    data = FolderSet(tmp_path)
    assert [image.name for image in data] == ["one", "two.5"]
    np.testing.assert_array_equal(data[0].rgb, rgb)
    np.testing.assert_array_equal(data[0].objects[0].mask, square)
    np.testing.assert_array_equal(data[1].objects[0].mask, ~square)


def test_masks_beside_the_images(tmp_path: Path, rgb: Rgb, square: Mask) -> None:
    save(tmp_path / "a.jpg", rgb)
    save(tmp_path / "a.png", square)
    save(tmp_path / "b.jpg", rgb)
    save(tmp_path / "b.0.png", square)
    save(tmp_path / "b.1.png", ~square)
    data = FolderSet(tmp_path)
    assert [[item.name for item in image.objects] for image in data] == [["a"], ["b.0", "b.1"]]


def test_a_label_map_gives_its_instances(tmp_path: Path, rgb: Rgb, square: Mask) -> None:
    save(tmp_path / "images" / "a.tif", rgb)
    save(tmp_path / "masks" / "a.tif", square.astype(np.uint16) * 300 + ~square)
    items = FolderSet(tmp_path)[0].objects
    assert [item.name for item in items] == ["a:1", "a:300"]
    np.testing.assert_array_equal(items[1].mask, square)


def test_images_and_masks_are_both_turned_upright(tmp_path: Path, rgb: Rgb, square: Mask) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images" / "a.png", rgb, exif=exif)
    save(tmp_path / "masks" / "a.png", np.rot90(square, -1))
    image = FolderSet(tmp_path)[0]
    assert image.rgb.shape == (16, 12, 3)
    np.testing.assert_array_equal(image.objects[0].mask, np.rot90(square, -1))
    # A tool that ignores the orientation writes masks of the file's size.
    save(tmp_path / "masks" / "a.png", square)
    with pytest.raises(DataError, match="16 x 12"):
        FolderSet(tmp_path)[0]


def test_what_cannot_be_used_is_named(tmp_path: Path, rgb: Rgb, square: Mask) -> None:
    for name in ("empty", "good", "lone", "other", "torn"):
        save(tmp_path / "images" / f"{name}.png", rgb)
    save(tmp_path / "masks" / "empty.png", np.zeros_like(square))
    save(tmp_path / "masks" / "good.png", square)
    save(tmp_path / "masks" / "other.png", square[1:])
    save(tmp_path / "masks" / "orphan.png", square)
    save(tmp_path / "masks" / "torn.png", square)
    image = tmp_path / "images" / "torn.png"
    image.write_bytes(image.read_bytes()[:100])
    data = FolderSet(tmp_path)
    reasons = {}
    for index in range(len(data)):
        try:
            reasons[data[index].name] = "used"
        except DataError as error:
            reasons[data.pairs[index].name] = str(error)
    assert reasons["good"] == "used"
    assert "empty" in reasons["empty"]
    assert "no mask" in reasons["lone"]
    assert "16 x 11" in reasons["other"]
    assert "orphan" in reasons["orphan"]
    assert "torn" in reasons["torn"]
    assert len(reasons) == 6


def test_ignored_objects_are_empty(tmp_path: Path, rgb: Rgb) -> None:
    trimap = np.zeros((12, 16), dtype=np.uint8)
    trimap[2:5] = 128
    save(tmp_path / "a.jpg", rgb)
    save(tmp_path / "a.png", trimap)
    with pytest.raises(DataError, match="empty"):
        open_image_set(f"folder:{tmp_path}?masks=trimap")[0]


def test_splits_are_folders_or_stable_parts(tmp_path: Path, rgb: Rgb, square: Mask) -> None:
    for split in ("train", "val"):
        save(tmp_path / "own" / split / "images" / f"{split}.png", rgb)
        save(tmp_path / "own" / split / "masks" / f"{split}.png", square)
    assert [image.name for image in FolderSet(tmp_path / "own", split="val")] == ["val"]
    for number in range(60):
        save(tmp_path / "flat" / f"{number}.jpg", rgb)
        save(tmp_path / "flat" / f"{number}.png", square)
    parts = {
        split: {pair.name for pair in FolderSet(tmp_path / "flat", split=split).pairs}
        for split in ("train", "val")
    }
    assert parts["train"] | parts["val"] == {str(number) for number in range(60)}
    assert not parts["train"] & parts["val"]
    # An image stays in its part as the folder grows.
    save(tmp_path / "flat" / "new.jpg", rgb)
    grown = {pair.name for pair in FolderSet(tmp_path / "flat", split="val").pairs}
    assert grown - {"new"} == parts["val"]
    with pytest.raises(DataError, match="no split 'test'"):
        FolderSet(tmp_path / "flat", split="test")


def test_other_folders_are_refused(tmp_path: Path, rgb: Rgb) -> None:
    with pytest.raises(DataError, match="no images with masks"):
        FolderSet(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        FolderSet(tmp_path / "gone")
    save(tmp_path / "a.jpg", rgb)
    save(tmp_path / "a.bmp", rgb)
    with pytest.raises(DataError, match="same name"):
        FolderSet(tmp_path)
    with pytest.raises(DataError, match="trimap"):
        open_image_set(f"folder:{tmp_path}?masks=colours")


def test_grabcut(pool: Path) -> None:
    data = open_image_set(f"folder:{pool}/eval/GrabCut")
    assert len(data) == 50
    for image in data:
        (item,) = image.objects
        assert not image.problems
        if item.ignore is not None:
            assert not (item.ignore & item.mask).any()


def test_nuclei(pool: Path) -> None:
    data = FolderSet(pool / "domains" / "nuclei")
    assert len(data) == 90
    for index in (0, 45, 89):
        with Image.open(data.pairs[index].masks[0]) as file:
            numbers = np.asarray(file)
        objects = data[index].objects
        assert len(objects) == len(np.unique(numbers)) - 1
        assert sum(item.mask.sum() for item in objects) == (numbers > 0).sum()
