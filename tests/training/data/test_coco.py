import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_masks

from lidiv_backend.errors import DataError
from lidiv_backend.training.data import CocoSet, open_image_set
from lidiv_backend.training.data.coco import decode_segmentation

Mask = NDArray[np.bool_]
SQUARE = [3.0, 2.0, 9.0, 2.0, 9.0, 7.0, 3.0, 7.0]


def compressed(mask: Mask) -> dict[str, Any]:
    rle = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(mask: Mask) -> dict[str, Any]:
    flat = mask.T.ravel().tolist()
    counts, value = [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


@given(arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 60))))
def test_masks_of_either_encoding_are_decoded(mask: Mask) -> None:
    height, width = mask.shape
    for segmentation in (compressed(mask), uncompressed(mask)):
        decoded = decode_segmentation(segmentation, height=height, width=width)
        np.testing.assert_array_equal(decoded, mask)


def test_long_runs_and_differences() -> None:
    mask = np.zeros((300, 400), dtype=bool)
    mask[10:290, 50] = True
    mask[:, 200:] = True
    decoded = decode_segmentation(compressed(mask), height=300, width=400)
    np.testing.assert_array_equal(decoded, mask)


def test_polygons_are_drawn_and_joined(square: Mask) -> None:
    far = [12.0, 9.0, 14.0, 9.0, 14.0, 11.0, 12.0, 11.0]
    decoded = decode_segmentation([SQUARE, far], height=12, width=16)
    expected = square.copy()
    expected[9:11, 12:14] = True
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        [[1, 1, 5, 1]],
        [[1, 1, 5, 1, 5, 5, 2]],
        [[1, 1, 5, 1, 5, float("nan")]],
        [[1, 1, 5, 1, 5, 1e12]],
        [["a", 1, 5, 1, 5, 1]],
        [1, 1, 5, 1, 5, 5],
        "text",
        {},
        {"size": [16, 12], "counts": [192]},
        {"size": [12, 16]},
        {"size": [12, 16], "counts": [191]},
        {"size": [12, 16], "counts": [200]},
        {"size": [12, 16], "counts": [-1, 193]},
        {"size": [12, 16], "counts": [192.0]},
        {"size": [12, 16], "counts": ""},
        {"size": [12, 16], "counts": "0"},
        {"size": [12, 16], "counts": "P"},
        {"size": [12, 16], "counts": "\u20ac"},
        {"size": [12, 16], "counts": "zzzz"},
    ],
)
def test_malformed_segmentations_are_refused(segmentation: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_segmentation(segmentation, height=12, width=16)


@pytest.fixture
def document(square: Mask) -> dict[str, Any]:
    return {
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "images": [
            {"id": 7, "file_name": "one.png", "height": 12, "width": 16},
            {"id": 8, "file_name": "empty.png", "height": 12, "width": 16},
            {
                "id": 9,
                "coco_url": "http://images.example.org/train2017/two.png",
                "height": 12,
                "width": 16,
            },
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "segmentation": compressed(~square)},
            {"id": 3, "image_id": 7, "segmentation": uncompressed(square), "iscrowd": 1},
            {"id": 4, "image_id": 7, "category_id": 1, "segmentation": [[1, 2]]},
            {"id": 5, "image_id": 7, "category_id": 1, "segmentation": [[90, 90, 95, 90, 95, 95]]},
            {"id": 6, "image_id": 9, "category_id": 9, "segmentation": uncompressed(square)},
        ],
    }


@pytest.fixture
def coco(tmp_path: Path, rgb: NDArray[np.uint8], document: dict[str, Any]) -> Path:
    (tmp_path / "images" / "train2017").mkdir(parents=True)
    Image.fromarray(rgb).save(tmp_path / "images" / "one.png")
    Image.fromarray(rgb).save(tmp_path / "images" / "train2017" / "two.png")
    (tmp_path / "a.json").write_text(json.dumps(document))
    return tmp_path


def test_objects_are_read_and_crowds_left_out(coco: Path, square: Mask) -> None:
    data = open_image_set(f"coco:{coco}/images,{coco}/a.json")
    assert len(data) == 2
    image = data[0]
    assert [(item.name, item.label) for item in image.objects] == [
        ("one:1", "cat"),
        ("one:2", "dog"),
    ]
    np.testing.assert_array_equal(image.objects[0].mask, square)
    np.testing.assert_array_equal(image.objects[1].mask, ~square)
    assert [problem.partition(": ")[0] for problem in image.problems] == ["one:4", "one:5"]
    assert "empty" in image.problems[1]


@pytest.mark.parametrize("folder", ["images", "images/train2017"])
def test_lvis_names_images_by_address(coco: Path, folder: str, square: Mask) -> None:
    image = CocoSet(coco / folder, coco / "a.json")[1]
    assert image.name == "train2017/two"
    assert image.objects[0].label == ""
    np.testing.assert_array_equal(image.objects[0].mask, square)


def test_an_image_of_another_size_is_refused(coco: Path, rgb: NDArray[np.uint8]) -> None:
    Image.fromarray(rgb[1:]).save(coco / "images" / "one.png")
    with pytest.raises(DataError, match="16 x 12 pixels, the image 16 x 11"):
        CocoSet(coco / "images", coco / "a.json")[0]


def test_a_missing_image_is_named(coco: Path) -> None:
    (coco / "images" / "one.png").unlink()
    with pytest.raises(DataError, match=r"one\.png"):
        CocoSet(coco / "images", coco / "a.json")[0]


def test_annotations_of_an_undescribed_image_are_counted(
    coco: Path, document: dict[str, Any]
) -> None:
    del document["images"][0]
    (coco / "a.json").write_text(json.dumps(document))
    data = CocoSet(coco / "images", coco / "a.json")
    assert len(data) == 2
    with pytest.raises(DataError, match="image 7"):
        data[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("images"),
        lambda d: d.pop("annotations"),
        lambda d: d.update(annotations=[]),
        lambda d: d.update(annotations=["x"]),
        lambda d: d["images"][0].pop("height"),
        lambda d: d["images"][0].update(height=10**6, width=10**6),
        lambda d: d["images"][0].pop("file_name"),
        lambda d: d.update(categories=[{}]),
    ],
)
def test_other_files_are_refused(
    coco: Path, document: dict[str, Any], damage: Callable[[dict[str, Any]], object]
) -> None:
    damage(document)
    (coco / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"a\.json"):
        CocoSet(coco / "images", coco / "a.json")


@pytest.mark.parametrize("content", ["", "[]", "{", "3", '"text"'])
def test_what_is_no_annotation_file_is_refused(coco: Path, content: str) -> None:
    (coco / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        CocoSet(coco / "images", coco / "a.json")
    with pytest.raises(DataError, match=r"gone\.json"):
        CocoSet(coco / "images", coco / "gone.json")


def test_polygons_without_pycocotools_are_refused_at_once(
    coco: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError, match="pip install"):
        CocoSet(coco / "images", coco / "a.json")
    document["annotations"] = document["annotations"][-1:]
    (coco / "a.json").write_text(json.dumps(document))
    assert CocoSet(coco / "images", coco / "a.json")[0].objects
