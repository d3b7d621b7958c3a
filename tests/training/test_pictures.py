"""Pictures of a run: they are drawn, and show what they claim."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.training.pictures import Example, draw_examples, draw_run


def example(*, shown: int = 1, height: int = 40, width: int = 60) -> Example:
    truth = np.zeros((height, width), bool)
    truth[10:30, 10:40] = True
    masks = np.stack([truth, ~truth, np.zeros_like(truth)])
    return Example(
        rgb=np.full((height, width, 3), 128, np.uint8),
        truth=truth,
        clicks=(Click(x=50, y=35, positive=False),),
        masks=masks,
        scores=(0.9, 0.1, 0.0),
        iou=(1.0, 0.0, 0.0),
        shown=shown,
    )


def red(picture: np.ndarray) -> np.ndarray:
    """Pixels that are tinted as masks are."""
    blue, _, red = (picture[..., channel].astype(int) for channel in range(3))
    found: np.ndarray = red - blue > 40
    return found


class TestExamples:
    @pytest.mark.parametrize("size", [(40, 60), (400, 640)])
    def test_each_head_has_its_tile(self, tmp_path: Path, size: tuple[int, int]) -> None:
        height, width = size
        draw_examples(tmp_path / "x.png", [example(height=height, width=width)] * 2)
        sheet = cv2.imread(str(tmp_path / "x.png"))
        assert sheet is not None
        rows, columns = sheet.shape[0] // 2, sheet.shape[1] // 4
        assert columns >= 260
        tiles = [
            sheet[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
            for row in range(2)
            for column in range(4)
        ]
        truth = example(height=height, width=width).truth.mean()
        scale = 260 / max(size)
        pixels = round(height * scale) * round(width * scale)
        for row in range(2):
            _, first, second, third = (red(tile).sum() / pixels for tile in tiles[4 * row :][:4])
            assert first == pytest.approx(truth, abs=0.06)
            assert second == pytest.approx(1 - truth, abs=0.06)
            assert third < 0.03

    def test_without_g_there_are_no_scores(self, tmp_path: Path) -> None:
        plain = example()
        without = dataclasses.replace(plain, scores=None)
        draw_examples(tmp_path / "x.png", [without])
        draw_examples(tmp_path / "y.png", [plain])
        assert (tmp_path / "x.png").read_bytes() != (tmp_path / "y.png").read_bytes()


class TestCurves:
    def test_are_drawn_of_all_phases(self, tmp_path: Path) -> None:
        rows = [
            {
                "step": step,
                "phase": phase,
                "loss": 1 / step,
                "best": 0.5,
                "selected": 0.4,
                "heads": [0.5, 0.5],
            }
            for phase in ("f", "g")
            for step in range(1, 5)
        ]
        rows.append({"step": 4, "phase": "f", "validation": {"1": [0.5, 0.4], "3": [0.6, 0.5]}})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        # The process was killed while it wrote.
        (tmp_path / "log.jsonl").write_text(text + '{"step": 5, "pha')
        picture = cv2.imread(str(draw_run(tmp_path)))
        assert picture is not None
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50

    def test_a_run_that_logged_nothing_has_empty_ones(self, tmp_path: Path) -> None:
        assert cv2.imread(str(draw_run(tmp_path))) is not None
