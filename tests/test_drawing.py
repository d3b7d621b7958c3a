import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.drawing import contact_sheet, overlay

GREY = np.full((40, 60, 3), 128, np.uint8)


def test_overlay_tints_the_mask_and_leaves_the_rest_and_the_input() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:30] = True

    picture = overlay(GREY, mask, colour=(255, 0, 0))

    inside, outside = picture[20, 20].astype(int), picture[35, 50]
    assert inside[0] > 180
    assert inside[1] < 80
    assert (outside == 128).all()
    assert (GREY == 128).all()


@pytest.mark.parametrize(("positive", "channel"), [(True, 1), (False, 0)])
def test_clicks_have_the_colour_of_their_sign(positive: bool, channel: int) -> None:
    picture = overlay(GREY, clicks=[Click(x=30, y=20, positive=positive)])

    # Beside the white sign in the middle of the disk.
    assert picture[18, 28].argmax() == channel


def test_sheet_holds_every_picture_whole() -> None:
    tiles = [(str(shade), np.full((20, 30, 3), shade, np.uint8)) for shade in (10, 60, 110)]

    sheet = contact_sheet(tiles, columns=2)

    for shade in (10, 60, 110):
        assert (sheet == shade).all(axis=2).sum() >= 20 * 30
