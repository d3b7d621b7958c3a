from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidiv_backend.labelstudio.options import ProjectOptions, read_options

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
_NAMES = st.sampled_from([*ProjectOptions.model_fields, "other", ""])


def test_what_is_asked_for() -> None:
    asked = {"rectangles": True, "refine_accepted": True, "overlay": ["second", "third"]}
    options, problems = read_options(asked)
    assert options == ProjectOptions(
        rectangles=True, refine_accepted=True, overlay=("second", "third")
    )
    assert problems == ()
    assert options.as_extra_params() == asked
    assert ProjectOptions().as_extra_params() == {}


def test_one_wrong_parameter_does_not_take_the_others_along() -> None:
    options, problems = read_options({"rectangles": True, "overlay": "second", "overly": []})
    assert options == ProjectOptions(rectangles=True)
    assert ["'overlay'" in problems[0], "'overly' is unknown" in problems[1]] == [True, True]


@pytest.mark.parametrize("value", [1, "true", None, [], {}])
def test_only_true_is_true(value: object) -> None:
    assert read_options({"rectangles": value})[0] == ProjectOptions()


@given(st.dictionaries(_NAMES, _JSON))
def test_nothing_crashes_it(extra_params: dict[str, object]) -> None:
    options, problems = read_options(extra_params)
    assert len(problems) <= len(extra_params)
    assert read_options(options.as_extra_params()) == (options, ())
