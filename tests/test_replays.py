import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidiv_backend.clicks import Click
from lidiv_backend.model import InferenceConfig, ModelDescription
from lidiv_backend.predictor import Predictor
from lidiv_backend.replays import Recorded, Replays, Work
from tests import tiny


class Recorder:
    """Records on the CPU: what a graph does, step by step, on the tensors that it was given."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, work: Work, given: Sequence[Tensor]) -> Recorded:
        self.recorded += 1
        found = work(*given)

        def replay() -> None:
            for own, tensor in zip(found, work(*given), strict=True):
                own.copy_(tensor)

        return replay, found


def _twice(x: Tensor) -> tuple[Tensor, ...]:
    return (x * 2,)


def test_work_is_recorded_when_it_is_asked_for_often() -> None:
    recorder = Recorder()
    replays = Replays(recorder, often=3)
    counts = []
    for number in range(5):
        (found,) = replays("twice", _twice, torch.full((3,), float(number)))
        assert found.tolist() == [2.0 * number] * 3
        counts.append(recorder.recorded)
    assert counts == [0, 0, 1, 1, 1]


def test_results_are_the_callers_own() -> None:
    replays = Replays(Recorder(), often=2)
    found = [replays("twice", _twice, torch.tensor([float(n)]))[0] for n in range(4)]
    assert torch.cat(found).tolist() == [0.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(4),
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, 3).t()[:, 0],
    ],
    ids=["shape", "type", "layout"],
)
def test_other_tensors_have_recordings_of_their_own(other: Tensor) -> None:
    recorder = Recorder()
    replays = Replays(recorder, often=2)
    for _ in range(3):
        replays("twice", _twice, torch.ones(3))
    (found,) = replays("twice", _twice, other)
    assert recorder.recorded == 1
    assert found.dtype == other.dtype
    assert found.tolist() == [2.0] * len(other)


def test_other_work_has_recordings_of_its_own() -> None:
    replays = Replays(Recorder(), often=2)
    for _ in range(3):
        replays("twice", _twice, torch.ones(1))
        (found,) = replays("thrice", lambda x: (x * 3,), torch.ones(1))
    assert found.tolist() == [3.0]


def test_what_was_not_used_for_the_longest_time_is_forgotten_first() -> None:
    recorder = Recorder()
    replays = Replays(recorder, most=2, often=1)
    for key in ("a", "b", "a", "c", "a"):
        replays(key, _twice, torch.ones(1))
    assert recorder.recorded == 3
    replays("b", _twice, torch.ones(1))
    assert recorder.recorded == 4


def test_what_cannot_be_recorded_is_done_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(work: Work, given: Sequence[Tensor]) -> Recorded:
        raise RuntimeError("operation not permitted when stream is capturing")

    replays = Replays(refuse, often=2)
    for number in range(4):
        assert replays("twice", _twice, torch.tensor([float(number)]))[0].tolist() == [2.0 * number]
    assert len(caplog.records) == 1


def test_a_device_without_recordings_just_does_the_work() -> None:
    replays = Replays.on(torch.device("cpu"))
    for _ in range(3):
        assert replays("twice", _twice, torch.ones(1))[0].tolist() == [2.0]
    assert [replays.room(count) for count in (1, 3, 7)] == [1, 3, 7]


def test_few_lengths_of_clicks() -> None:
    replays = Replays(Recorder())
    assert [replays.room(count) for count in (1, 4, 5, 8, 9, 40)] == [4, 4, 8, 8, 16, 64]


def test_threads_do_not_get_each_others_results() -> None:
    replays = Replays(Recorder())
    wrong = []

    def ask(number: int) -> None:
        for _ in range(200):
            (found,) = replays("twice", _twice, torch.full((50,), float(number)))
            if set(found.tolist()) != {2.0 * number}:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _answers(predictor: Predictor) -> list[tuple[int, float, NDArray[np.bool_]]]:
    """Proposals for one to five clicks on two images, each asked for three times."""
    clicks = [
        Click(x=5 + 7 * number, y=20 - 2 * number, positive=number % 2 == 0) for number in range(5)
    ]
    answers = []
    for seed in (0, 1):
        for _ in range(3):
            image = predictor.embed(tiny.photo(48, 64, seed=seed))
            for count in range(1, 6):
                previous = np.zeros((48, 64), np.float32) if count > 1 else None
                answers += [
                    (proposal.head, proposal.score, proposal.mask)
                    for proposal in predictor.predict(image, clicks[:count], previous)
                ]
    return answers


def _description(pyramid: bool) -> ModelDescription:
    inference = InferenceConfig(longest_side=64, max_pixels=None)
    return tiny.description(pyramid=pyramid, previous=pyramid, heads=6, inference=inference)


@pytest.mark.parametrize("pyramid", [False, True], ids=["paper", "default"])
def test_a_predictor_gives_the_same_by_recordings(
    pyramid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _answers(tiny.predictor(_description(pyramid), cache_bytes=0))
    recorder = Recorder()
    monkeypatch.setattr(Replays, "on", lambda device: Replays(recorder, often=2))
    found = _answers(tiny.predictor(_description(pyramid), cache_bytes=0, replay=True))
    # An encoder or a projection, and f and g for one click, and for more with the mask before:
    # all of them once for up to 4 clicks, f and g once more for 5.
    assert recorder.recorded >= 5
    assert len(found) == len(expected)
    for (head, score, mask), (other_head, other_score, other_mask) in zip(
        found, expected, strict=True
    ):
        assert head == other_head
        assert score == pytest.approx(other_score, abs=1e-6)
        assert (mask == other_mask).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU here.")
@pytest.mark.parametrize("pyramid", [False, True], ids=["paper", "default"])
def test_a_gpu_gives_the_same_by_recordings(
    pyramid: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found, expected = (
        _answers(
            tiny.predictor(
                _description(pyramid), cache_bytes=0, device=torch.device("cuda"), replay=replay
            )
        )
        for replay in (True, False)
    )
    assert not caplog.records
    assert [head for head, _, _ in found] == [head for head, _, _ in expected]
    for (_, score, mask), (_, other_score, other_mask) in zip(found, expected, strict=True):
        assert score == pytest.approx(other_score, abs=1e-3)
        assert (mask == other_mask).mean() > 0.99
