import io
import multiprocessing
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lidiv_backend.errors import DataError
from lidiv_backend.training.data import ShardSet, open_image_set

HEADER = "shard\timage\tmask\tarea_frac\tkind\tlabel\tset\tsplit"


def png(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path, rgb: NDArray[np.uint8], square: NDArray[np.bool_]) -> Path:
    write_shard(
        tmp_path / "one.tar",
        {
            "a.png": png(rgb),
            "a.0.png": png(square),
            "a.1.png": png(~square),
            "b.png": png(255 - rgb),
            "b.0.png": png(square),
        },
    )
    write_shard(tmp_path / "two.tar", {"c.png": png(rgb), "c.0.png": png(square)})
    rows = [
        "one.tar\ta.png\ta.0.png\t0.1562\tinstance\tcat\tpets\ttrain",
        "one.tar\ta.png\ta.1.png\t0.8438\tregion\tann1\tpets\ttrain",
        "one.tar\tb.png\tb.0.png\t0.1562\tinstance\t\tpets\tval",
        "two.tar\tc.png\tc.0.png\t0.1562\tpart\thair\tccp\ttrain",
    ]
    (tmp_path / "index.tsv").write_text("\n".join([HEADER, *rows]) + "\n")
    return tmp_path


def test_images_and_masks_are_those_of_the_shards(
    shards: Path, rgb: NDArray[np.uint8], square: NDArray[np.bool_]
) -> None:
    data = ShardSet(shards)
    assert len(data) == 3
    image = data[0]
    assert image.name == "a"
    np.testing.assert_array_equal(image.rgb, rgb)
    assert [(o.name, o.kind, o.label) for o in image.objects] == [
        ("a.0", "instance", "cat"),
        ("a.1", "region", "ann1"),
    ]
    np.testing.assert_array_equal(image.objects[0].mask, square)
    np.testing.assert_array_equal(image.objects[1].mask, ~square)
    np.testing.assert_array_equal(data[1].rgb, 255 - rgb)
    assert data[2].objects[0].name == "c.0"


def test_entries_say_what_the_index_says(shards: Path) -> None:
    entries = ShardSet(shards).entries(0)
    assert [entry.area_fraction for entry in entries] == [0.1562, 0.8438]
    assert [entry.source for entry in entries] == ["pets", "pets"]
    assert [entry.name for entry in entries] == ["a.0", "a.1"]


def test_splits_kinds_and_sources_choose(shards: Path) -> None:
    assert [image.name for image in ShardSet(shards, split="val")] == ["b"]
    only = ShardSet(shards, kinds=["instance"])
    assert [[o.name for o in image.objects] for image in only] == [["a.0"], ["b.0"]]
    assert len(open_image_set(f"shards:{shards}?kinds=instance,part&sets=ccp", split="train")) == 1
    with pytest.raises(DataError, match="split test"):
        ShardSet(shards, split="test")


def test_survives_pickling_and_forking(shards: Path) -> None:
    data = ShardSet(shards)
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    np.testing.assert_array_equal(copy[2].rgb, data[2].rgb)
    with multiprocessing.get_context("fork").Pool(2) as workers:
        read = workers.map(data.__getitem__, [2, 0, 1, 0, 2])
    assert [image.name for image in read] == ["c", "a", "b", "a", "c"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.tsv").unlink(), "no folder of shards"),
        (lambda folder: (folder / "two.tar").unlink(), "two.tar"),
        (lambda folder: (folder / "two.tar").write_bytes(b"x" * 2000), "two.tar"),
        (lambda folder: (folder / "index.tsv").write_text("shard\timage\n"), "no column mask"),
        (lambda folder: (folder / "index.tsv").write_text(HEADER + "\none.tar\ta"), "Line 2"),
        (lambda folder: (folder / "index.tsv").write_bytes(b"\xff\xfe\x00"), "no folder of shards"),
    ],
)
def test_what_is_no_folder_of_shards_is_refused(
    shards: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(shards)
    with pytest.raises(DataError, match=message):
        ShardSet(shards)


def test_a_bad_mask_is_left_out_with_its_reason(
    tmp_path: Path, rgb: NDArray[np.uint8], square: NDArray[np.bool_]
) -> None:
    write_shard(
        tmp_path / "one.tar",
        {
            "a.png": png(rgb),
            "a.0.png": png(square),
            "a.1.png": png(square[:, 1:]),
            "a.2.png": png(np.zeros_like(square)),
            "a.3.png": b"no image",
            "b.png": png(rgb)[:60],
            "b.0.png": png(square),
            "c.png": png(rgb),
            "c.0.png": png(np.zeros_like(square)),
        },
    )
    rows = [f"one.tar\ta.png\ta.{k}.png\t0.1\tinstance\t\ts\ttrain" for k in range(5)]
    rows += [f"one.tar\t{i}.png\t{i}.0.png\t0.1\tinstance\t\ts\ttrain" for i in "bcd"]
    (tmp_path / "index.tsv").write_text("\n".join([HEADER, *rows]))
    data = ShardSet(tmp_path)
    image = data[0]
    assert [item.name for item in image.objects] == ["a.0"]
    reasons = dict(problem.split(": ", 1) for problem in image.problems)
    assert "15 x 12" in reasons["a.1"]
    assert "empty" in reasons["a.2"]
    assert "cannot be read" in reasons["a.3"]
    assert "cannot be read" in reasons["a.4"]  # not in the shard
    for index, name in ((1, "b"), (2, "c"), (3, "d")):
        with pytest.raises(DataError, match=f"image {name}"):
            data[index]


def test_a_shard_that_is_cut_off_loses_only_its_end(shards: Path) -> None:
    path = shards / "one.tar"
    with tarfile.open(path) as archive:
        cut = archive.getmember("b.png").offset_data + 10
    path.write_bytes(path.read_bytes()[:cut])
    data = ShardSet(shards)
    assert len(data[0].objects) == 2
    assert len(data[2].objects) == 1
    with pytest.raises(DataError, match="image b"):
        data[1]


def test_the_pool_is_what_its_index_says(pool: Path) -> None:
    data = ShardSet(pool / "train")
    assert len(data) == 5929
    assert sum(len(data.entries(index)) for index in range(len(data))) == 15128
    assert len(ShardSet(pool / "train", split="train")) + len(
        ShardSet(pool / "train", split="val")
    ) == len(data)
    for index in range(0, len(data), 100):
        image = data[index]
        assert not image.problems
        for item, entry in zip(image.objects, data.entries(index), strict=True):
            assert item.mask.mean() == pytest.approx(entry.area_fraction, abs=1e-3)
