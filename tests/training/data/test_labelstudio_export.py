import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.brush import mask2rle
from numpy.typing import NDArray
from PIL import Image

from lidiv_backend.errors import DataError
from lidiv_backend.training.data import LabelStudioSet, open_image_set

Mask = NDArray[np.bool_]

CONFIG = """
<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Object"/></BrushLabels>
<KeyPointLabels name="kp" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>
</View>
"""


def rle_of(mask: Mask) -> list[int]:
    return list(mask2rle(mask.astype(np.uint8) * 255))


def result(mask: Mask, kind: str = "brushlabels", **changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"format": "rle", "rle": rle_of(mask)}
    if kind != "brush":
        value[kind] = ["Object"]
    whole = {
        "original_width": 16,
        "original_height": 12,
        "image_rotation": 0,
        "value": value,
        "id": "r1",
        "from_name": "kp" if kind == "keypointlabels" else "brush",
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }
    return {**whole, **changes}


def task(number: int, *results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    annotation = {
        "id": 10 * number,
        "result": list(results),
        "was_cancelled": False,
        "completed_by": {"id": 1, "email": "a@example.org"},
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "lead_time": 1.0,
    }
    whole = {
        "id": number,
        "data": {"image": f"/data/upload/1/5c502c72-photo{number}.png"},
        "annotations": [annotation],
        "predictions": [],
    }
    return {**whole, **changes}


def export(folder: Path, rgb: NDArray[np.uint8], *tasks: dict[str, Any]) -> LabelStudioSet:
    (folder / "images").mkdir(exist_ok=True)
    for item in tasks:
        Image.fromarray(rgb).save(folder / "images" / f"photo{item['id']}.png")
    (folder / "export.json").write_text(json.dumps(tasks))
    return LabelStudioSet(folder / "export.json", folder / "images")


def test_brush_masks_are_read(tmp_path: Path, rgb: NDArray[np.uint8], square: Mask) -> None:
    data = export(tmp_path, rgb, task(1, result(square), result(~square, id="r2")))
    assert len(data) == 1
    image = data[0]
    assert image.name == "task 1"
    np.testing.assert_array_equal(image.rgb, rgb)
    assert [(item.name, item.label) for item in image.objects] == [
        ("task 1, annotation 10, region r1", "Object"),
        ("task 1, annotation 10, region r2", "Object"),
    ]
    np.testing.assert_array_equal(image.objects[0].mask, square)
    np.testing.assert_array_equal(image.objects[1].mask, ~square)
    assert len(open_image_set(f"labelstudio:{tmp_path}/export.json,{tmp_path}/images")) == 1


def test_the_bogus_key_point_is_left_out(
    tmp_path: Path, rgb: NDArray[np.uint8], square: Mask
) -> None:
    # In either order, and with a mask that an eraser has made stale.
    brush, stale = result(square), result(~square, "keypointlabels")
    for results in ((brush, stale), (stale, brush)):
        image = export(tmp_path, rgb, task(1, *results))[0]
        assert [item.label for item in image.objects] == ["Object"]
        np.testing.assert_array_equal(image.objects[0].mask, square)
        assert not image.problems


def test_a_brush_gets_the_label_that_comes_apart(
    tmp_path: Path, rgb: NDArray[np.uint8], square: Mask
) -> None:
    image = export(tmp_path, rgb, task(1, result(square, "brush"), result(square, "labels")))[0]
    assert [item.label for item in image.objects] == ["Object"]
    image = export(
        tmp_path, rgb, task(1, result(square, "brush"), result(~square, "brush", id="2"))
    )[0]
    assert [item.label for item in image.objects] == ["", ""]


def test_json_min_of_label_studios_own_converter(
    tmp_path: Path, rgb: NDArray[np.uint8], square: Mask
) -> None:
    copy = result(square, "keypointlabels")
    tasks = [
        task(1, result(square), copy, result(~square, id="r2")),
        task(2, result(~square)),
    ]
    second = json.loads(json.dumps(tasks[1]["annotations"][0]))
    second["id"] = 21
    second["result"] = [result(square)]
    tasks[1]["annotations"].append(second)
    export(tmp_path, rgb, *tasks)
    Converter(CONFIG, str(tmp_path)).convert_to_json_min(
        str(tmp_path / "export.json"), str(tmp_path / "min"), is_dir=False
    )
    data = LabelStudioSet(tmp_path / "min" / "result.json", tmp_path / "images")
    assert len(data) == 2
    assert [len(image.objects) for image in data] == [2, 2]
    assert not data[0].problems
    for index, expected in enumerate(((square, ~square), (~square, square))):
        for item, mask in zip(data[index].objects, expected, strict=True):
            np.testing.assert_array_equal(item.mask, mask)
            assert item.label == "Object"


def test_skipped_and_untouched_tasks_are_left_out(
    tmp_path: Path, rgb: NDArray[np.uint8], square: Mask
) -> None:
    skipped = task(2, result(square))
    skipped["annotations"][0]["was_cancelled"] = True
    predicted = task(3, annotations=[], predictions=[{"result": [result(square)]}])
    drafted = task(5, annotations=[], drafts=[{"result": [result(square)]}])
    data = export(tmp_path, rgb, task(1, result(square)), skipped, predicted, task(4), drafted)
    assert [image.name for image in data] == ["task 1"]


def test_bad_regions_are_left_out_with_their_reasons(
    tmp_path: Path, rgb: NDArray[np.uint8], square: Mask
) -> None:
    good = rle_of(square)

    def with_rle(identity: str, rle: Any) -> dict[str, Any]:
        return result(
            square, id=identity, value={"format": "rle", "rle": rle, "brushlabels": ["O"]}
        )

    bad = {
        "cut": with_rle("cut", good[: len(good) // 2]),
        "none": with_rle("none", None),
        "range": with_rle("range", [300, *good[1:]]),
        "text": with_rle("text", "abc"),
        "size": result(square[1:], id="size"),
        "other": result(square[:, 1:], id="other", original_width=15),
        "huge": result(square, id="huge", original_width=10**6, original_height=10**6),
        "nosize": result(square, id="nosize", original_width=None),
        "empty": result(np.zeros_like(square), id="empty"),
        "turned": result(~square, id="turned", image_rotation=90),
        "lonely": result(~square, "keypointlabels", id="lonely"),
    }
    noise = [None, 3, {"type": "brushlabels"}, {"value": "x"}, {"type": "choices", "value": {}}]
    whole = task(1, result(square), *bad.values())
    whole["annotations"][0]["result"] += noise
    image = export(tmp_path, rgb, whole)[0]
    assert [item.name for item in image.objects] == ["task 1, annotation 10, region r1"]
    named = {problem.partition(": ")[0].rpartition(" ")[2] for problem in image.problems}
    assert named == set(bad)


def test_annotations_without_a_brush_are_named(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    box = {"type": "rectanglelabels", "id": "b", "value": {"x": 1, "y": 1}, "original_width": 16}
    data = export(tmp_path, rgb, task(1, box))
    with pytest.raises(DataError, match="no brush mask"):
        data[0]


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("/data/upload/1/5c502c72-a b.png", "a b.png"),
        ("/data/upload/1/5c502c72-a%20b.png", "a b.png"),
        ("/data/upload/1/5c502c72-a.png", "5c502c72-a.png"),
        ("/data/local-files/?d=lab/day%201/a.png", "day 1/a.png"),
        ("s3://bucket/lab/a.png", "lab/a.png"),
        ("https://example.org/x/a.png?token=1", "a.png"),
        ("a.png", "a.png"),
    ],
)
def test_images_are_found(
    tmp_path: Path, rgb: NDArray[np.uint8], square: Mask, reference: str, file: str
) -> None:
    path = tmp_path / "images" / file
    path.parent.mkdir(parents=True)
    Image.fromarray(rgb).save(path)
    item = task(1, result(square), data={"title": "x", "picture": reference})
    (tmp_path / "export.json").write_text(json.dumps([item]))
    data = LabelStudioSet(tmp_path / "export.json", tmp_path / "images")
    np.testing.assert_array_equal(data[0].rgb, rgb)


@pytest.mark.parametrize("reference", ["/data/upload/gone.png", "../secret.png", "", "images"])
def test_images_that_are_not_in_the_folder_are_named(
    tmp_path: Path, rgb: NDArray[np.uint8], square: Mask, reference: str
) -> None:
    Image.fromarray(rgb).save(tmp_path / "secret.png")
    data = export(tmp_path, rgb, task(1, result(square), data={"image": reference}))
    with pytest.raises(DataError, match="is not in"):
        data[0]


@pytest.mark.parametrize("content", ["", "{}", "[3]", "[]", '[{"id": 1, "data": {}}]'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataError, match=r"export\.json"):
        LabelStudioSet(tmp_path / "export.json", tmp_path)
    with pytest.raises(DataError, match="gone"):
        LabelStudioSet(tmp_path / "export.json", tmp_path / "gone")


def test_the_other_readers_do_without_label_studios_sdk() -> None:
    code = (
        "import sys; import lidiv_backend.training.data, lidiv_backend.training.simulation; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('label_studio_sdk', 'flask', 'pydantic', 'scipy', 'pycocotools')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
