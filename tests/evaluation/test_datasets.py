import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.datasets import (
    BENCHMARKS,
    DATA_VARIABLE,
    CocoSample,
    known_data_sets,
    open_data_set,
    split_specs,
)


def make(folder: Path, images: str, masks: str, count: int, *, suffix: str = ".png") -> Path:
    """Images with a mask each: 255 in the middle, 128 around it, 0 outside."""
    for name in (images, masks):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((8, 10), np.uint8)
    mask[1:7, 1:9] = 128
    mask[3:5, 3:6] = 255
    for number in range(count):
        cv2.imwrite(str(folder / images / f"{number:03d}.jpg"), np.full((8, 10, 3), 90, np.uint8))
        cv2.imwrite(str(folder / masks / f"{number:03d}{suffix}"), mask)
    return folder


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("data_GT", "boundary_GT")])
def test_grabcut_in_both_layouts_ignores_what_its_trimaps_leave_open(
    tmp_path: Path, images: str, masks: str
) -> None:
    folder = make(tmp_path / "GrabCut", images, masks, 50, suffix=".bmp")
    found = open_data_set(f"grabcut:{folder}")
    assert (found.name, len(found)) == ("GrabCut", 50)
    (item,) = found[7].objects
    assert item.mask.sum() == 2 * 3
    assert item.ignore is not None
    assert item.ignore.sum() == 6 * 8 - 2 * 3


def test_davis_counts_all_of_a_mask(tmp_path: Path) -> None:
    folder = make(tmp_path / "DAVIS", "img", "gt", 345)
    found = open_data_set("davis", data=tmp_path)
    assert len(found) == 345
    (item,) = found[0].objects
    # Whatever exceeds half of the largest value.
    assert item.mask.sum() == 6 * 8
    assert item.ignore is None
    assert open_data_set(f"davis:{folder}").name == "DAVIS"


@pytest.mark.parametrize("name", [name for name, b in BENCHMARKS.items() if b.layouts])
def test_a_folder_that_is_something_else_is_refused_with_a_reason(
    name: str, tmp_path: Path
) -> None:
    benchmark = BENCHMARKS[name]
    images, masks = benchmark.layouts[0]
    folder = make(tmp_path / "few", images, masks, 7)
    with pytest.raises(DataError, match=f"7 images, but {benchmark.name} has"):
        open_data_set(f"{name}:{folder}")
    with pytest.raises(DataError, match="is not"):
        open_data_set(f"{name}:{tmp_path}")
    with pytest.raises(DataError, match="Get "):
        open_data_set(name, data=tmp_path)


def test_without_a_place_to_look_the_remedy_says_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"--data or LIDIV_DATA.*RITM"):
        open_data_set("berkeley")


def test_an_image_without_a_mask_is_a_record_not_an_end(tmp_path: Path) -> None:
    folder = make(tmp_path / "Berkeley", "images", "masks", 100)
    (folder / "masks" / "004.png").unlink()
    found = open_data_set(f"berkeley:{folder}")
    assert len(found) == 100
    with pytest.raises(DataError, match="004"):
        found[4]
    assert found[5].name == "005"


def test_sbd_must_have_its_counts(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="SBD's masks are Matlab files")
    for name in ("img", "inst", "cls"):
        (tmp_path / name).mkdir()
    (tmp_path / "val.txt").write_text("2008_000001\n")
    with pytest.raises(DataError, match="1 images in val, but SBD has 2820 or 2857"):
        open_data_set(f"sbd:{tmp_path}")


def coco(folder: Path, categories: int, images_each: int) -> tuple[Path, Path]:
    """Annotations with two objects of one category on each image."""
    folder.mkdir()
    images, annotations = [], []
    for category in range(1, categories + 1):
        for _ in range(images_each):
            number = len(images) + 1
            images.append({"id": number, "file_name": f"{number}.jpg", "height": 10, "width": 10})
            for rows in (2, 4):
                counts = [0, rows, 100 - rows]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "iscrowd": 0,
                        "segmentation": {"size": [10, 10], "counts": counts},
                    }
                )
    file = folder / "instances.json"
    names = [{"id": number, "name": f"c{number:02d}"} for number in range(1, categories + 1)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    return folder, file


def test_the_papers_sample_of_coco_is_ten_objects_of_each_category(tmp_path: Path) -> None:
    images, file = coco(tmp_path / "coco", 80, 12)
    sample = CocoSample(images, file)
    assert len(sample) == 800
    again = open_data_set(f"coco-paper:{images},{file}")
    cv2.imwrite(str(images / "1.jpg"), np.zeros((10, 10, 3), np.uint8))
    drawn, places = set(), []
    for index in range(800):
        try:
            image = sample[index]
        except DataError as error:
            drawn.add(error.message.split()[2])
            continue
        places.append(index)
        assert len(image.objects) == 1
        assert again[index].objects[0].name == image.objects[0].name
    # No image twice: 10 of the 12 of each category.
    assert len(drawn) + len(places) == 800
    with pytest.raises(DataError, match="79 categories"):
        CocoSample(*coco(tmp_path / "short", 79, 12))
    with pytest.raises(DataError, match="9 images with the category"):
        CocoSample(*coco(tmp_path / "thin", 80, 9))


def test_specs_are_divided_at_commas_but_not_within() -> None:
    assert split_specs("grabcut,coco-dev") == ["grabcut", "coco-dev"]
    text = "coco:/a,/b.json,grabcut:/c,shards:/d?sets=voc,ccp,folder:/e"
    assert split_specs(text) == [
        "coco:/a,/b.json",
        "grabcut:/c",
        "shards:/d?sets=voc,ccp",
        "folder:/e",
    ]


def test_every_benchmark_says_where_it_comes_from() -> None:
    lines = known_data_sets()
    for name, benchmark in BENCHMARKS.items():
        assert any(line.startswith(f"{name} or ") and benchmark.origin in line for line in lines)


@pytest.mark.skipif(DATA_VARIABLE not in os.environ, reason="LIDIV_DATA is not set")
def test_the_shared_benchmarks() -> None:
    grabcut, coco_dev = open_data_set("grabcut"), open_data_set("coco-dev")
    assert (len(grabcut), len(coco_dev)) == (50, 160)
    for image in (grabcut[0], coco_dev[0]):
        assert len(image.objects) == 1
        assert image.objects[0].mask.shape == image.rgb.shape[:2]
    # Eight of its masks leave nothing open.
    assert sum(grabcut[i].objects[0].ignore is not None for i in range(50)) == 42
    assert coco_dev[0].objects[0].ignore is None
