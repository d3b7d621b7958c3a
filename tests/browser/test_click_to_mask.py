"""The whole path: an annotator clicks, sees masks, takes one, and it is what gets stored."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lidiv_backend.demo.stack import Stack, connect_project
from lidiv_backend.labelstudio.connect import recommended_label_config
from lidiv_backend.learning.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LABELS_OF_THEIR_OWN = """
<View>
  <Image name="photo" value="$image" zoom="true"/>
  <BrushLabels name="mask" toName="photo" smart="false"><Label value="Object"/></BrushLabels>
  <KeyPointLabels name="point" toName="photo" smart="true"><Label value="Object"/></KeyPointLabels>
</View>
"""
CONFIGS = {"labels and brush": recommended_label_config(), "brush labels": LABELS_OF_THEIR_OWN}

# On the cup, on the cup's other side, and on the saucer, in coffee.jpg (600 x 400).
FIRST, SECOND, NEGATIVE = (240, 230), (380, 200), (120, 290)
# Where f has fewer than six different masks.
SAUCER = (150, 300)


def photo_address(stack: Stack, title: str, label_config: str, photo: str) -> tuple[int, str]:
    """Make a project, and return its number and where one photo's task is."""
    project = connect_project(stack, title=title, label_config=label_config).project_id
    tasks = stack.client().tasks.list(project=project)
    (task,) = (each.id for each in tasks if each.data["image"].endswith(photo))
    return project, f"{stack.label_studio_url}/projects/{project}/data?task={task}"


@pytest.mark.parametrize("config", CONFIGS)
def test_click_to_mask(stack: Stack, page: Page, screenshots: Path, config: str) -> None:
    from tests.browser.labeling import LabelingPage, decode_mask

    labeling = LabelingPage(page, screenshots)
    project, address = photo_address(stack, config, CONFIGS[config], "coffee.jpg")
    labeling.open(address)
    labeling.keep_label_selected()
    labeling.choose_auto_detect("Object")

    first = labeling.click(*FIRST)
    assert first.clicks == (True,)
    assert first.text.startswith("proposal 1 of ")
    assert first.mask[FIRST[1], FIRST[0]]
    second = labeling.click(*SECOND)
    assert second.clicks == (True, True)
    third = labeling.click(*NEGATIVE, positive=False)
    assert third.clicks == (True, True, False)
    assert not third.mask[NEGATIVE[1], NEGATIVE[0]]
    assert third.text.startswith("proposal 1 of ")
    number_of_proposals = int(third.text.split()[-1])
    assert number_of_proposals > 1, "the model found one reading only; click on something else"

    shown = labeling.click(SECOND[0] + 5, SECOND[1])
    assert shown.text == f"proposal 2 of {number_of_proposals}"
    assert not np.array_equal(shown.mask, third.mask)

    labeling.accept()
    labeling.expect_details("Object", shown.text)
    annotation = labeling.submit()

    stored = stack.client().annotations.get(id=annotation).result
    masks = [
        decode_mask(
            region["value"]["rle"],
            height=region["original_height"],
            width=region["original_width"],
        )
        for region in stored
        if "rle" in region["value"]
    ]
    assert masks
    for mask in masks:
        np.testing.assert_array_equal(mask, shown.mask)
    assert {label for region in stored for label in _labels(region)} == {"Object"}
    assert not any(region["type"] == "keypoint" for region in stored)

    # The webhook, with its secret, told the backend; the region's id leads to the clicks.
    store = Store(f"sqlite:///{stack.folder / 'backend' / 'lidiv.sqlite'}")
    with closing(store):
        (key,) = (
            each.project for each in store.connections() if each.project.startswith(f"{project}.")
        )
        kept = store.annotation(key, annotation)
        answer = store.answer(stored[0]["id"])
    assert kept is not None
    assert list(kept.result) == stored
    assert answer is not None
    assert [(each.positive, each.next) for each in answer.clicks] == [
        (True, False),
        (True, False),
        (False, False),
        (True, True),
    ]
    assert answer.shown == 1


def test_stepping_on_behind_the_last_proposal_looks_ahead(
    stack: Stack, page: Page, screenshots: Path
) -> None:
    from tests.browser.labeling import LabelingPage

    labeling = LabelingPage(page, screenshots)
    _, address = photo_address(stack, "ahead", recommended_label_config(), "coffee.jpg")
    labeling.open(address)
    labeling.keep_label_selected()
    labeling.choose_auto_detect("Object")

    x, y = SAUCER
    first = labeling.click(x, y)
    told = re.fullmatch(r"proposal 1 of (\d) or more", first.text)
    assert told, "the model has six masks for this click; click on something else"
    count = int(told[1])
    around = ((6, 0), (0, 6), (-6, 0), (0, -6), (5, 5))
    seen = [first]
    for number, (across, down) in enumerate(around[: count - 1], start=2):
        seen.append(labeling.click(x + across, y + down))
        assert seen[-1].text == f"proposal {number} of {count} or more"
    across, down = around[count - 1]
    ahead = labeling.click(x + across, y + down)
    told = re.fullmatch(rf"proposal {count + 1} of (\d)", ahead.text)
    assert told, ahead.text
    assert count < int(told[1]) <= 6
    assert not any(np.array_equal(ahead.mask, other.mask) for other in seen)


def _labels(region: dict[str, Any]) -> list[str]:
    value = region["value"]
    return [*value.get("labels", ()), *value.get("brushlabels", ())]
