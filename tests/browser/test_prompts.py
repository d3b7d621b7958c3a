"""What projects can ask for beyond clicks, in a real Label Studio; the documentation's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lidiv_backend.demo.stack import Stack, connect_project
from lidiv_backend.labelstudio.connect import Wish, connect, recommended_label_config
from lidiv_backend.labelstudio.options import ProjectOptions

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.labeling import LabelingPage

pytestmark = pytest.mark.browser

# In coffee.jpg (600 x 400): around the cup, on it, on the saucer and on the spoon beside it.
AROUND_CUP, CUP, SAUCER, SPOON = (158, 4, 428, 302), (300, 220), (120, 290), (366, 300)


def open_photo(
    stack: Stack, page: Page, screenshots: Path, title: str, options: ProjectOptions
) -> LabelingPage:
    """Make a project that asks for something, and open a photo in it, ready to be clicked on."""
    from tests.browser.labeling import LabelingPage

    config = recommended_label_config(options=options)
    project = connect_project(stack, title=title, label_config=config).project_id
    wish = Wish(backend_url=stack.backend_url, project_id=project, options=options)
    connect(stack.client(), wish, url=stack.label_studio_url)
    tasks = stack.client().tasks.list(project=project)
    (task,) = (each.id for each in tasks if each.data["image"].endswith("coffee.jpg"))
    labeling = LabelingPage(page, screenshots)
    labeling.open(f"{stack.label_studio_url}/projects/{project}/data?task={task}")
    labeling.keep_label_selected()
    labeling.choose_auto_detect("Object")
    return labeling


def test_clicks_for_the_pictures(stack: Stack, page: Page, screenshots: Path) -> None:
    from tests.browser.pictures import picture

    labeling = open_photo(stack, page, screenshots, "pictures", ProjectOptions())
    picture(page, "tool")
    first = labeling.click(240, 230)
    picture(page, "first-click")
    following = labeling.click(246, 230)
    assert following.text.startswith("proposal 2 of ")
    assert not np.array_equal(first.mask, following.mask)
    picture(page, "next-proposal")
    refined = labeling.click(*SAUCER, positive=False)
    assert not refined.mask[SAUCER[1], SAUCER[0]]
    picture(page, "negative-click")
    labeling.accept()
    picture(page, "accepted")


def test_a_rectangle_and_a_click_in_it(stack: Stack, page: Page, screenshots: Path) -> None:
    from tests.browser.pictures import picture

    options = ProjectOptions(rectangles=True)
    labeling = open_photo(stack, page, screenshots, "rectangles", options)
    labeling.choose_smart_tool("rectangle")
    inside = labeling.draw_rectangle(*AROUND_CUP)
    left, top, right, bottom = AROUND_CUP
    outside = inside.mask.copy()
    outside[top - 2 : bottom + 3, left - 2 : right + 3] = False
    assert inside.mask[CUP[1], CUP[0]]
    assert not outside.any()
    picture(page, "rectangle")
    labeling.choose_smart_tool("key-point")
    # A plain click would take hold of the rectangle.
    refined = labeling.click(*SPOON, positive=False, through=True)
    # Nothing but a rectangle makes a mask of a negative click alone.
    assert refined.clicks == (False,)
    assert refined.mask[CUP[1], CUP[0]]
    assert not np.array_equal(refined.mask, inside.mask)
    picture(page, "rectangle-refined")
    labeling.accept()
    labeling.wait_for_draft()
    # The rectangle is done with: what is clicked on in it is another object.
    new = labeling.click(*SPOON, through=True)
    assert new.clicks == (True,)
    assert new.mask[SPOON[1], SPOON[0]]
    assert not (new.mask & refined.mask).sum() > 0.5 * refined.mask.sum()


def test_a_copy_of_an_accepted_region(stack: Stack, page: Page, screenshots: Path) -> None:
    from tests.browser.pictures import picture

    options = ProjectOptions(refine_accepted=True)
    labeling = open_photo(stack, page, screenshots, "copies", options)
    first = labeling.click(240, 230)
    labeling.accept()
    labeling.wait_for_draft()
    copy = labeling.click(*SPOON, positive=False, through=True)
    assert copy.text.endswith("from a copy of the region beneath")
    assert not np.array_equal(copy.mask, first.mask)
    assert (copy.mask & first.mask).sum() > 0.5 * first.mask.sum()
    picture(page, "copy")


def test_alternatives_at_once(stack: Stack, page: Page, screenshots: Path) -> None:
    from tests.browser.labeling import decode_mask
    from tests.browser.pictures import picture

    options = ProjectOptions(overlay=("alternative 2", "alternative 3"))
    labeling = open_photo(stack, page, screenshots, "overlay", options)
    shown = labeling.click_for_all(240, 230)
    assert len(shown) > 1, "the model found one reading only; click on something else"
    assert shown[-1].labels == ("Object",)
    assert shown[-2].labels == ("alternative 2",)
    picture(page, "overlay")
    labeling.take_one(len(shown) - 2)
    labeling.reject()
    annotation = labeling.submit()
    stored = stack.client().annotations.get(id=annotation).result
    (mask,) = {
        decode_mask(each["value"]["rle"], height=400, width=600).tobytes()
        for each in stored
        if "rle" in each["value"]
    }
    assert mask == shown[-2].mask.tobytes()
    labels = {label for each in stored for label in each["value"].get("labels", ())}
    assert labels == {"Object"}
