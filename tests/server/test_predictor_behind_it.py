"""The application over the real predictor, with tiny networks of random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flask import Flask

from lidiv_backend.clicks import Click
from lidiv_backend.model import InferenceConfig
from lidiv_backend.predictor import Predictor
from tests import tiny
from tests.image_host import pixels
from tests.server.test_app import body, click, mask_of, only_region, predict

SMALL = InferenceConfig(longest_side=64, max_pixels=None, merge_iou=None)


@pytest.fixture
def engine() -> Predictor:
    return tiny.predictor(tiny.description(pyramid=True, previous=True, inference=SMALL))


def test_what_is_shown_is_what_the_predictor_proposes(
    make_app: Callable[..., Flask], engine: Predictor
) -> None:
    client = make_app().test_client()
    image = engine.embed(pixels(512, 512))
    first, second = Click(x=255.5, y=255.5), Click(x=409.1, y=255.5, positive=False)
    expected = engine.predict(image, [first])
    region = only_region(predict(client, body(click(50))))
    np.testing.assert_array_equal(mask_of(region), expected[0].mask)
    assert region["score"] == pytest.approx(expected[0].score)
    refined = engine.predict(image, [first, second], previous=expected[0].mask)
    region = only_region(predict(client, body(click(50), click(80, positive=False))))
    np.testing.assert_array_equal(mask_of(region), refined[0].mask)
    assert region["meta"]["text"] == [f"proposal 1 of {len(refined)}"]


def test_versions_name_the_weights(make_app: Callable[..., Flask], engine: Predictor) -> None:
    assert make_app().test_client().get("/versions").get_json() == {"versions": [engine.version]}
