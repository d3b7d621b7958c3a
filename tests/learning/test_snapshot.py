from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.learning.snapshot import (
    Snapshot,
    SnapshotSet,
    is_held_out,
    read_snapshot,
    take_snapshot,
)
from lidiv_backend.learning.store import StoredAnswer, StoredClick, StoredProposal
from lidiv_backend.learning.vault import Vault
from tests.learning.lab import PROJECT, Lab, region


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def take(lab: Lab, vault: Vault, tmp_path: Path, *, holdout: float = 0.25) -> Snapshot:
    return take_snapshot(
        lab.store,
        vault,
        tmp_path / "snapshots",
        lab.fetch,
        channel="shared",
        projects=None,
        holdout=holdout,
    )


def test_masks_and_images_come_back_as_they_were_accepted(
    lab: Lab, vault: Vault, tmp_path: Path
) -> None:
    lab.accept(3)
    snapshot = take(lab, vault, tmp_path)
    (image,) = SnapshotSet(snapshot.images, vault, name="s")
    wanted = lab.images[3]
    np.testing.assert_array_equal(image.rgb, wanted.rgb)
    assert [item.label for item in image.objects] == ["Cell", "Cell"]
    for found, accepted in zip(image.objects, wanted.objects, strict=True):
        np.testing.assert_array_equal(found.mask, accepted.mask)
    assert snapshot.problems == ()


def test_it_is_named_by_what_it_holds(lab: Lab, vault: Vault, tmp_path: Path) -> None:
    for task in range(4):
        lab.accept(task)
    first = take(lab, vault, tmp_path)
    assert take(lab, vault, tmp_path) == first
    assert read_snapshot(tmp_path / "snapshots", first.digest) == first
    # Nothing is fetched twice.
    assert len(lab.fetched) == 4
    lab.accept(4)
    second = take(lab, vault, tmp_path)
    assert second.digest != first.digest
    # The first one stays as it was, whatever happens to the annotations.
    lab.accept(0, [])
    assert read_snapshot(tmp_path / "snapshots", first.digest) == first


def test_alternatives_that_nobody_chose_are_left_out(
    lab: Lab, vault: Vault, tmp_path: Path
) -> None:
    lab.store.keep_connection(
        project=PROJECT,
        hostname="",
        access_token="",
        label_config="",
        extra_params={"overlay": ["second"]},
    )
    masks = [item.mask for item in lab.images[0].objects]
    chosen = region(masks[0], identity="a")
    lab.accept(0, [*chosen, *region(masks[1], identity="b", label="second")])
    snapshot = take(lab, vault, tmp_path)
    (image,) = snapshot.images
    assert [mask.label for mask in image.masks] == ["Cell"]
    assert "nobody chose" in snapshot.problems[0]


def test_a_changed_file_is_not_believed(lab: Lab, vault: Vault, tmp_path: Path) -> None:
    lab.accept(0)
    digest = take(lab, vault, tmp_path).digest
    path = tmp_path / "snapshots" / f"{digest}.json"
    values = json.loads(path.read_text())
    values["images"][0]["held_out"] ^= True
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="damaged"):
        read_snapshot(tmp_path / "snapshots", digest)


def test_updates_and_deletions_take_effect_and_skipped_tasks_do_not_count(
    lab: Lab, vault: Vault, tmp_path: Path
) -> None:
    for task in range(3):
        lab.accept(task)
    lab.accept(3, was_cancelled=True)
    lab.store.keep_event(
        action="ANNOTATIONS_DELETED", project=PROJECT, payload={}, deleted=[1000, 1001]
    )
    mask = lab.images[2].objects[0].mask
    lab.accept(2, region(~mask))
    (image,) = SnapshotSet(take(lab, vault, tmp_path).images, vault, name="s")
    np.testing.assert_array_equal(image.objects[0].mask, ~mask)
    lab.accept(2, region(~mask), was_cancelled=True)
    assert take(lab, vault, tmp_path).images == ()


def test_what_cannot_be_used_is_left_out_with_its_reason(
    lab: Lab, vault: Vault, tmp_path: Path
) -> None:
    good = lab.images[0].objects[0].mask
    rectangle = {
        "id": "b", "type": "rectanglelabels", "to_name": "image", "from_name": "rect",
        "value": {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["Cell"]},
    }  # fmt: skip
    broken = region(good, identity="broken")[:1]
    broken[0]["value"] = {"format": "rle", "rle": broken[0]["value"]["rle"][:20]}
    lab.accept(0, region(good) + broken + [rectangle])
    lab.accept(1, region(np.ones((5, 5), dtype=bool)))
    lab.accept(2, [rectangle])
    lab.accept(3)
    lab.gone.add("/data/upload/7/3.png")
    lab.accept(4, task_data={"text": "no image"})
    lab.accept(5, region(np.zeros_like(good)))
    lab.accept(6, "nonsense")
    snapshot = take(lab, vault, tmp_path)
    assert [[mask.name for mask in image.masks] for image in snapshot.images] == [
        [f"{PROJECT}/1000/r"]
    ]
    told = "\n".join(snapshot.problems)
    for reason in (
        "Annotation 1000 of project 7.1795328789: Region broken: The RLE is malformed",
        "The mask has 5 x 5 pixels, its image 96 x 60.",
        "Annotation 1002 of project 7.1795328789 holds no brush mask.",
        "The image is gone.",
        "no image under 'image'",
        "The mask is empty.",
    ):
        assert reason in told


def test_an_image_that_is_gone_is_asked_for_once(lab: Lab, vault: Vault, tmp_path: Path) -> None:
    lab.gone.add("/data/upload/7/3.png")
    for number in range(3):
        lab.accept(3, annotation=number)
    assert len(take(lab, vault, tmp_path).problems) == 6
    assert len(lab.fetched) == 1
    # An image that was fetched before is no longer needed from Label Studio.
    lab.gone.clear()
    assert len(take(lab, vault, tmp_path).images) == 1
    lab.gone.add("/data/upload/7/3.png")
    assert len(take(lab, vault, tmp_path).images) == 1


def test_the_hold_out_stays_as_data_grow(lab: Lab, vault: Vault, tmp_path: Path) -> None:
    parts: dict[str, bool] = {}
    for task in range(20):
        lab.accept(task)
        if task % 5 == 4:
            snapshot = take(lab, vault, tmp_path)
            for image in snapshot.images:
                assert parts.setdefault(image.image, image.held_out) == image.held_out
    assert len(parts) == 20
    assert 0 < len(snapshot.part(held_out=True)) < 20
    assert {*snapshot.part(held_out=True), *snapshot.part(held_out=False)} == {*snapshot.images}


def test_an_image_in_two_tasks_and_projects_is_one_image(
    lab: Lab, vault: Vault, tmp_path: Path
) -> None:
    lab.accept(0)
    lab.accept(1, lab.annotation(0).result, task_data={"image": "/data/other/0.png"})
    (image,) = take(lab, vault, tmp_path).images
    assert len(image.masks) == 4


def test_the_share_of_the_hold_out_is_about_what_was_asked_for() -> None:
    digests = [f"{number:064x}" for number in range(2000)]
    assert 0.2 < np.mean([is_held_out(digest, 0.25) for digest in digests]) < 0.3
    assert not any(is_held_out(digest, 0.0) for digest in digests)
    assert all(is_held_out(digest, 1.0) for digest in digests)
    # A larger share holds back what a smaller one does.
    assert all(is_held_out(d, 0.5) for d in digests if is_held_out(d, 0.25))


def test_real_clicks_are_attached_by_region(lab: Lab, vault: Vault, tmp_path: Path) -> None:
    clicks = (
        StoredClick(id="a", x=50.0, y=25.0, positive=True, next=False),
        StoredClick(id="b", x=50.5, y=25.0, positive=True, next=True),
        StoredClick(id="c", x=0.0, y=100.0, positive=False, next=False),
    )
    answer = {
        "task": 0, "first_click": "a", "interactive": True, "to_name": "image", "label": "Cell",
        "height": 60, "width": 96, "clicks": clicks, "model_version": "v1",
        "proposals": (StoredProposal(score=0.9, head=1), StoredProposal(score=0.5, head=0)),
    }  # fmt: skip
    lab.store.keep_answer(
        StoredAnswer(region_id="region-0-0", project=PROJECT, shown=1, **answer)  # type: ignore[arg-type]
    )
    # An id that another project's region has is not ours.
    lab.store.keep_answer(
        StoredAnswer(region_id="region-0-1", project="8.1", shown=0, **answer)  # type: ignore[arg-type]
    )
    lab.accept(0)
    snapshot = take(lab, vault, tmp_path)
    first, second = snapshot.images[0].masks
    assert first.stepped
    # Pixels: 50 % of 96 columns is the edge between two of them; the outermost clicks are inside.
    assert first.clicks == (
        Click(x=47.5, y=14.5, positive=True),
        Click(x=0.0, y=59.0, positive=False),
    )
    assert (second.clicks, second.stepped) == ((), False)
    (image,) = SnapshotSet(snapshot.images, vault, name="s")
    assert image.objects[0].clicks == first.clicks
