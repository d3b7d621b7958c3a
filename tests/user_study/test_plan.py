from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.user_study.plan import (
    StudyPlan,
    choose_objects,
    draw_tasks,
    read_object,
    read_plan,
    title_models,
    write_plan,
)
from tests import tiny

MODELS = ("graph cut", "DOS", "ours")


def draw(**changes):
    wanted = {
        "participants": 5,
        "objects_each": 10,
        "objects": 50,
        "models": MODELS,
        "seed": 3,
    }
    return draw_tasks(**(wanted | changes))


def test_the_paper_s_design() -> None:
    """5 participants, 30 tasks each, every pair with each of three models: 50 tasks a model."""
    tasks = draw()
    assert len(tasks) == 150
    assert Counter(task.model for task in tasks) == dict.fromkeys(MODELS, 50)
    assert len({task.object for task in tasks}) == 50
    for participant in range(1, 6):
        own = [task for task in tasks if task.participant == participant]
        assert [task.place for task in own] == list(range(1, 31))
        assert set(Counter((task.object, task.model) for task in own).values()) == {1}
        assert set(Counter(task.object for task in own).values()) == {3}


def test_the_order_is_random_and_seeded() -> None:
    tasks = draw()
    assert draw() == tasks
    assert draw(seed=4) != tasks
    # Every model comes first somewhere: the order is not that of the models.
    first = {}
    for task in draw(participants=5, objects_each=10):
        first.setdefault((task.participant, task.object), task.model)
    assert set(first.values()) == set(MODELS)


def test_few_objects_are_shared_but_nobody_gets_one_twice() -> None:
    tasks = draw(objects=4, objects_each=3)
    for participant in range(1, 6):
        own = [task.object for task in tasks if task.participant == participant]
        assert set(Counter(own).values()) == {3}
    with pytest.raises(BadRequestError, match="cannot be drawn from 4"):
        draw(objects=4, objects_each=5)


def test_titles_tell_nothing() -> None:
    models = [(label, "paper", "http://127.0.0.1:9090") for label in MODELS]
    orders = set()
    for seed in range(20):
        titled = title_models("Study", models, seed)
        assert [model.label for model in titled] == list(MODELS)
        orders.add(tuple(model.title for model in titled))
        assert {model.title for model in titled} == {"Study A", "Study B", "Study C"}
    assert len(orders) > 3


def test_objects_and_plan_come_back(tmp_path: Path) -> None:
    images = tiny.PaintedSet(length=6)
    names = choose_objects(images, 4, tmp_path, seed=1)
    assert len({name.split(".")[0] for name in names}) == 4
    for number, name in enumerate(names):
        image, item = name.split(".")
        rgb, mask = read_object(tmp_path, number)
        np.testing.assert_array_equal(rgb, images[int(image)].rgb)
        np.testing.assert_array_equal(mask, images[int(image)].objects[int(item)].mask)
    with pytest.raises(BadRequestError, match="6 images that can be used; 7 are needed"):
        choose_objects(images, 7, tmp_path, seed=1)
    plan = StudyPlan(
        seed=1,
        models=tuple(title_models("S", [("a", "paper", "http://x.test")], 1)),
        objects=names,
        tasks=draw(models=("a",), objects=4, objects_each=2),
    )
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    (tmp_path / "study.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="is no study"):
        read_plan(tmp_path)
