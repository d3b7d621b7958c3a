"""What a participant's clicks and steps come to in numbers."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.protocols import Action
from lidiv_backend.predictor import Proposal
from lidiv_backend.user_study.outcome import Done, Measured, measure, render
from lidiv_backend.user_study.plan import StudyModel, StudyPlan, StudyTask

TASK = StudyTask(participant=1, place=1, object=0, model="ours")
PLAN = StudyPlan(
    seed=0,
    models=(StudyModel(label="ours", source="-", backend="http://a.test", title="Study A"),),
    objects=("square",),
    tasks=(TASK,),
)


class Halves:
    """Offers the upper third of what is bright, then all of it; a further click adds a row."""

    def embed(self, rgb):
        return rgb[..., 0] > 120

    def predict(self, image, clicks, previous=None):
        if previous is not None:
            mask = previous.copy()
            mask[int(clicks[-1].y)] = True
            return [Proposal(mask=mask, score=1, head=0)]
        part = image.copy()
        part[20:] = False
        return [Proposal(mask=mask, score=1, head=head) for head, mask in enumerate((part, image))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of one bright square of 30 rows."""
    mask = np.zeros((50, 50), np.uint8)
    mask[10:40, 10:40] = 255
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "0.png"), cv2.merge([mask] * 3))
    cv2.imwrite(str(tmp_path / "pictures" / "0-mask.png"), mask)
    return tmp_path


def measured(folder: Path, *steps_after: int) -> Measured:
    clicks = tuple(Click(x=15, y=15 - number) for number in range(len(steps_after)))
    done = Done(
        task=TASK, clicks=clicks, steps_after=steps_after, seconds=None, model_version="halves"
    )
    (found,) = measure([done], folder, lambda label: Halves())
    return found


def test_a_mask_that_was_stepped_to_was_reached(folder: Path) -> None:
    found = measured(folder, 1)
    assert found.actions == (
        Action(actions=1, iou=1 / 3, stepped=False),
        Action(actions=2, iou=1.0, stepped=True),
    )
    assert (found.clicks_to(0.85), found.actions_to(0.85), found.reached(0.85)) == (1, 2, True)
    assert found.ious == (1 / 3,)
    row = "| ours | 1 | 1.00 (1.00 to 1.00) | 100 % | 1.000 | 1.00 | - | 2.00 (2.00 to 2.00) |"
    assert row in render(PLAN, [found], [])


def test_a_click_refines_the_mask_that_was_stepped_to(folder: Path) -> None:
    # The second click adds a row of 50 pixels, 30 of which the object has already.
    assert measured(folder, 1, 0).ious == (1 / 3, 900 / 920)
    assert measured(folder, 0, 0).ious == (1 / 3, 300 / 920)


def test_what_is_never_reached_counts_twenty(folder: Path) -> None:
    found = measured(folder, *[0] * 25)
    assert len(found.actions) == 20
    assert (found.clicks_to(0.85), found.actions_to(0.85), found.reached(0.85)) == (20, 20, False)
