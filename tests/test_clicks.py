"""Clicks become tensors: Eq. 1 against other libraries and against a literal double loop."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from lidiv_backend.clicks import (
    TRUNCATION,
    Click,
    click_maps,
    distance_maps,
    pack_clicks,
    sampling_places,
    validate_clicks,
)
from lidiv_backend.errors import BadClickError


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, list[Click]]:
    """Height, width and clicks anywhere that `validate_clicks` allows."""
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    clicks = st.builds(
        Click,
        x=st.floats(-0.5, width - 0.5),
        y=st.floats(-0.5, height - 0.5),
        positive=st.booleans(),
    )
    return height, width, draw(st.lists(clicks, max_size=4))


def literal_distances(
    height: int, width: int, clicks: list[Click], *, stride: float = 1.0
) -> NDArray[np.float64]:
    """Eq. 1, one pixel and one click at a time."""
    maps = np.full((2, height, width), np.inf)
    for row in range(height):
        for column in range(width):
            y, x = (row + 0.5) * stride - 0.5, (column + 0.5) * stride - 0.5
            for click in clicks:
                channel = 0 if click.positive else 1
                distance = math.hypot(y - click.y, x - click.x)
                maps[channel, row, column] = min(maps[channel, row, column], distance)
    return np.minimum(maps, 255) / 255


class TestDistanceMaps:
    @given(scenes(), st.sampled_from([1, 2, 4, 16]))
    def test_equal_the_equation(self, scene: tuple[int, int, list[Click]], stride: int) -> None:
        height, width, clicks = scene
        size = (-(-height // stride), -(-width // stride))
        maps = distance_maps(pack_clicks([clicks]), size, stride=stride)
        assert maps.dtype == torch.float32
        expected = literal_distances(*size, clicks, stride=stride)
        np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-6)

    def test_equal_the_transforms_of_opencv_and_scipy(self) -> None:
        rng = np.random.default_rng(0)
        height, width = 61, 83
        clicks = [
            Click(x=int(rng.integers(width)), y=int(rng.integers(height)), positive=i % 2 == 0)
            for i in range(9)
        ]
        maps = distance_maps(pack_clicks([clicks]), (height, width))[0].numpy() * TRUNCATION
        for channel, positive in enumerate((True, False)):
            away = np.ones((height, width), np.uint8)
            for click in clicks:
                if click.positive == positive:
                    away[int(click.y), int(click.x)] = 0
            exact = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            np.testing.assert_allclose(maps[channel], exact, atol=1e-3)
            np.testing.assert_allclose(maps[channel], distance_transform_edt(away), atol=1e-3)

    def test_are_truncated_at_255_pixels(self) -> None:
        maps = distance_maps(pack_clicks([[Click(x=0, y=0)]]), (1, 400))[0, 0, 0]
        assert maps[254] == pytest.approx(254 / 255)
        assert (maps[255:] == 1).all()

    def test_no_click_is_the_largest_distance_everywhere(self) -> None:
        assert (distance_maps(pack_clicks([[]]), (3, 4)) == 1).all()
        only_positive = distance_maps(pack_clicks([[Click(x=1, y=1)]]), (3, 4))
        assert (only_positive[:, 1] == 1).all()
        assert (only_positive[:, 0] < 1).all()

    def test_padding_does_not_touch_the_shorter_example(self) -> None:
        alone = [Click(x=2, y=1)]
        many = [Click(x=0, y=0, positive=False), Click(x=1, y=2), Click(x=3, y=3)]
        together = distance_maps(pack_clicks([alone, many]), (5, 6))
        for row, clicks in enumerate((alone, many)):
            assert torch.equal(
                together[row : row + 1], distance_maps(pack_clicks([clicks]), (5, 6))
            )


class TestClickMaps:
    @given(scenes(), st.sampled_from([1, 2, 4, 16]))
    def test_mark_exactly_the_clicked_cells(
        self, scene: tuple[int, int, list[Click]], stride: int
    ) -> None:
        height, width, clicks = scene
        size = (-(-height // stride), -(-width // stride))
        expected = np.zeros((2, *size), np.float32)
        for click in clicks:
            # The pixel is the one whose square holds the click; the image's edge is inclusive.
            row = min(int(np.float32(click.y) + 0.5) // stride, size[0] - 1)
            column = min(int(np.float32(click.x) + 0.5) // stride, size[1] - 1)
            expected[0 if click.positive else 1, row, column] = 1
        maps = click_maps(pack_clicks([clicks]), size, stride=stride)
        np.testing.assert_array_equal(maps[0].numpy(), expected)

    @pytest.mark.parametrize("radius", [0.4, 1, 2, 3, 5, 7, 10])
    @pytest.mark.parametrize("stride", [1, 2, 4])
    def test_disks_hold_the_cells_whose_centres_are_near(self, radius: float, stride: int) -> None:
        height, width = 12, 15
        clicks = [
            Click(x=14 * stride, y=11 * stride),
            Click(x=0, y=0),
            Click(x=7, y=3, positive=False),
        ]
        expected = np.zeros((2, height, width), np.float32)
        for row in range(height):
            for column in range(width):
                y, x = (row + 0.5) * stride - 0.5, (column + 0.5) * stride - 0.5
                for click in clicks:
                    near = (y - click.y) ** 2 + (x - click.x) ** 2 <= radius**2
                    hit = click.y // stride == row and click.x // stride == column
                    if near or hit:
                        expected[0 if click.positive else 1, row, column] = 1
        maps = click_maps(pack_clicks([clicks]), (height, width), stride=stride, radius=radius)
        np.testing.assert_array_equal(maps[0].numpy(), expected)

    def test_no_click_is_empty_whatever_the_radius(self) -> None:
        assert (click_maps(pack_clicks([[]]), (4, 4), radius=300) == 0).all()


class TestPackClicks:
    def test_pads_with_sign_0(self) -> None:
        packed = pack_clicks([[Click(x=1, y=2)], [], [Click(x=3, y=4, positive=False)] * 2])
        assert packed.shape == (3, 2, 3)
        assert packed[..., 2].tolist() == [[1, 0], [0, 0], [-1, -1]]

    def test_an_empty_batch_of_clicks_has_one_place(self) -> None:
        assert pack_clicks([[]]).shape == (1, 1, 3)

    @pytest.mark.parametrize("scale", [(0.5, 0.25), (2.0, 3.0), (1.0, 1.0)])
    def test_corners_go_to_corners(self, scale: tuple[float, float]) -> None:
        width, height = 40, 24
        corners = [Click(x=-0.5, y=-0.5), Click(x=width - 0.5, y=height - 0.5)]
        packed = pack_clicks([corners], scale=scale)[0]
        assert packed[0, :2].tolist() == [-0.5, -0.5]
        assert packed[1, :2].tolist() == [width * scale[0] - 0.5, height * scale[1] - 0.5]

    def test_a_pixel_goes_to_the_middle_of_its_enlargement(self) -> None:
        # Pixel 1 of 4 becomes pixels 3, 4, 5 of 12: its centre goes to 4.
        assert pack_clicks([[Click(x=1, y=1)]], scale=(3, 3))[0, 0, :2].tolist() == [4, 4]

    def test_there_is_room_for_more_clicks(self) -> None:
        clicks = [Click(x=3, y=1), Click(x=0, y=2, positive=False)]
        packed = pack_clicks([clicks], room=4)
        assert packed.shape == (1, 4, 3)
        assert torch.equal(packed[:, :2], pack_clicks([clicks]))
        assert (packed[:, 2:] == 0).all()
        assert torch.equal(pack_clicks([clicks], room=1), pack_clicks([clicks]))


class TestSamplingPlaces:
    @pytest.mark.parametrize("stride", [1, 2, 16])
    def test_a_cell_is_sampled_where_it_was_clicked(self, stride: int) -> None:
        rows, columns = 5, 7
        numbers = torch.arange(float(rows * columns)).view(1, 1, rows, columns)
        middles = [
            Click(x=(column + 0.5) * stride - 0.5, y=(row + 0.5) * stride - 0.5)
            for row in range(rows)
            for column in range(columns)
        ]
        places = sampling_places(pack_clicks([middles]), (rows, columns), stride=stride)
        sampled = torch.nn.functional.grid_sample(numbers, places.unsqueeze(1), align_corners=False)
        torch.testing.assert_close(sampled.flatten(), numbers.flatten())


class TestValidateClicks:
    def test_edges_belong_to_the_image(self) -> None:
        corners = [Click(x=x, y=y) for x in (-0.5, 9.5) for y in (-0.5, 4.5)]
        validate_clicks(corners, height=5, width=10)
        validate_clicks([], height=5, width=10)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("axis", ["x", "y"])
    def test_what_is_no_number_is_refused(self, bad: float, axis: str) -> None:
        click = Click(**{"x": 1.0, "y": 1.0, axis: bad})
        with pytest.raises(BadClickError, match=r"Click 2 .* not numbers"):
            validate_clicks([Click(x=0, y=0), click], height=5, width=10)

    @pytest.mark.parametrize(
        ("x", "y"), [(-0.6, 0), (9.6, 0), (0, -0.6), (0, 4.6), (4, 9), (1e30, 0)]
    )
    def test_what_is_outside_is_refused(self, x: float, y: float) -> None:
        with pytest.raises(BadClickError, match="outside the image, which is 10 x 5 pixels"):
            validate_clicks([Click(x=x, y=y)], height=5, width=10)
