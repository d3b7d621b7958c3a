from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle
from numpy.typing import NDArray

from lidiv_backend.labelstudio import rle as module
from lidiv_backend.labelstudio.rle import BadRegionError, decode_mask, encode_mask
from tests.labelstudio import golden

_SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@settings(max_examples=60, deadline=None)
@given(arrays(bool, _SHAPES))
def test_label_studios_own_decoder_reads_what_is_sent(mask: NDArray[np.bool_]) -> None:
    values = decode_rle(encode_mask(mask)).reshape(*mask.shape, 4)
    for channel in range(4):
        np.testing.assert_array_equal(values[..., channel], mask * np.uint8(255))


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, _SHAPES))
def test_what_others_encoded_is_read_as_label_studio_reads_it(alpha: NDArray[np.uint8]) -> None:
    # As a browser writes it: channels differ, so that single values and runs mix.
    rgba = np.stack([alpha // 2, alpha // 3, alpha * 0, alpha], axis=-1)
    stream = encode_rle(rgba.ravel())
    height, width = alpha.shape
    theirs = decode_rle(stream).reshape(height, width, 4)[..., 3] > 127
    np.testing.assert_array_equal(decode_mask(stream, height=height, width=width), theirs)


def test_runs_longer_than_16_bits_survive() -> None:
    mask = np.zeros((300, 400), dtype=bool)
    mask[10:290, :] = True
    np.testing.assert_array_equal(
        decode_rle(encode_mask(mask)).reshape(300, 400, 4)[..., 3] > 0, mask
    )


def test_a_recorded_region_of_a_browser_is_read() -> None:
    brush, _ = golden.load("saved_result_brushlabels_keypointlabels")
    mask = decode_mask(brush["value"]["rle"], height=512, width=512)
    np.testing.assert_array_equal(
        mask, decode_rle(brush["value"]["rle"]).reshape(512, 512, 4)[..., 3] > 127
    )
    assert mask.any()


_GOOD = mask2rle(np.eye(8, dtype=np.uint8) * 255)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        ([], "no header"),
        ([1, 2, 3], "no header"),
        (_GOOD[:-6], "ends early"),
        (_GOOD[:8], "ends early"),
        ([*_GOOD[:4], 0xFF, *_GOOD[5:]], "bits instead of 8"),
        ([0, 0, 1, 4, *_GOOD[4:]], "holds 260 values"),
        ([300, 2, 3], "list of bytes"),
        ([-1] * 20, "list of bytes"),
        ([0.5] * 20, "list of bytes"),
        (["0"] * 20, "list of bytes"),
        ("text", "list of bytes"),
        (None, "list of bytes"),
        ({"rle": 1}, "list of bytes"),
    ],
)
def test_a_malformed_stream_is_refused_with_its_reason(stream: object, reason: str) -> None:
    with pytest.raises(BadRegionError, match=reason):
        decode_mask(stream, height=8, width=8)  # type: ignore[arg-type]


def test_a_run_past_the_last_pixel_is_refused() -> None:
    # 4 values announced, one run of 8 that repeats.
    stream = f"{4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "1" + "00" + "111" + "11111111"
    stream = stream.ljust(-(-len(stream) // 8) * 8, "0")
    data = [int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)]
    with pytest.raises(BadRegionError, match="past the last pixel"):
        decode_mask(data, height=1, width=1)


def test_a_stream_that_claims_gigabytes_allocates_nothing() -> None:
    with pytest.raises(BadRegionError, match="more than the limit"):
        decode_mask([255] * 20, height=32_768, width=32_767)


def test_a_mask_of_ones_own_may_be_larger_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Real ones of that size take a gigabyte.
    monkeypatch.setitem(decode_mask.__kwdefaults__, "max_pixels", 63)
    stream = encode_mask(np.eye(8, dtype=bool))
    with pytest.raises(BadRegionError, match="more than the limit of 63"):
        decode_mask(stream, height=8, width=8)
    assert decode_mask(stream, height=8, width=8, max_pixels=64).sum() == 8


def test_nothing_is_sent_that_decodes_to_another_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mask2rle", lambda _: mask2rle(np.zeros((8, 8), np.uint8)))
    with pytest.raises(BadRegionError, match="did not survive"):
        encode_mask(np.eye(8, dtype=bool))
