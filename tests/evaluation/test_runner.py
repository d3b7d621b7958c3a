"""The whole of `lidiv evaluate` on tiny data sets, with a method that this module defines."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.cli import main
from lidiv_backend.clicks import Click
from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.evaluation.methods import MethodSpec
from lidiv_backend.evaluation.protocols import ClickProtocol, ProtocolSettings
from lidiv_backend.evaluation.results import (
    FILE_NAME,
    Problem,
    Result,
    ResultLog,
    read_results,
)
from lidiv_backend.evaluation.runner import Plan, evaluate, settings_hash
from lidiv_backend.predictor import Proposal

SOURCE = f"{__name__}:Threshold"


class Threshold:
    """Selects what is as bright as the last positive click; counts how often it embeds."""

    version = "threshold-1"
    embedded = 0

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        type(self).embedded += 1
        return rgb[..., 0].astype(int)

    def predict(self, image, clicks, previous=None):
        click = [click for click in clicks if click.positive][-1]
        near = abs(image - image[int(click.y), int(click.x)]) < 40
        return [Proposal(mask=near, score=0.5, head=0)]


class Broken(Threshold):
    """Fails on images that are not the warm-up's size."""

    version = "broken"

    def predict(self, image, clicks, previous=None):
        if image.shape != (96, 128):
            raise ZeroDivisionError("no luck")
        return super().predict(image, clicks, previous)


class Unlucky(Threshold):
    """Fails at the second object, or seed, of the set that it begins with."""

    begun = 0

    def predict(self, image, clicks, previous=None):
        if image.shape == (24, 32) and len(clicks) == 1:
            type(self).begun += 1
            if type(self).begun == 2:
                raise ZeroDivisionError("no luck")
        return super().predict(image, clicks, previous)


class Interrupted(Threshold):
    """Ctrl+C at the fourth image."""

    version = Threshold.version

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        if type(self).embedded == 4:
            raise KeyboardInterrupt
        return super().embed(rgb)


class Deadly(Threshold):
    """Ends its process as lack of memory does, but only on images of the set."""

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        if rgb.shape[0] == 24:
            os._exit(9)
        return super().embed(rgb)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images with one bright rectangle each; noise hides part of it."""
    root = tmp_path / "rectangles"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        mask = np.zeros((24, 32), np.uint8)
        mask[4:18, 5 : 12 + 2 * number] = 255
        rgb = np.where(mask[..., None] > 0, 200, 60) + rng.integers(-45, 45, (24, 32, 1))
        cv2.imwrite(str(root / "images" / f"{number}.png"), np.repeat(rgb, 3, 2).astype(np.uint8))
        cv2.imwrite(str(root / "masks" / f"{number}.png"), mask)
    return root


def plan(folder: Path, **changes: object) -> Plan:
    return Plan(
        **{
            "methods": (MethodSpec(label="bright", source=SOURCE),),
            "data_sets": (f"folder:{folder}",),
            "settings": tuple(ProtocolSettings(protocol=p) for p in ClickProtocol),
            "seeds": (0, 1),
            **changes,
        }
    )


def without_times(results: tuple[Result, ...]) -> dict:
    return {
        result.key: (
            result.settings,
            result.trace.clicks,
            [(step.clicks, step.iou, step.oracle) for step in result.trace.steps],
            result.trace.actions,
        )
        for result in results
    }


def test_every_object_by_every_protocol_and_seed(folder: Path, tmp_path: Path) -> None:
    contents = evaluate(plan(folder), tmp_path / "out", quiet=True)
    # The centre protocol has nothing random, so it runs once.
    assert len(contents.latest()) == 6 * (1 + 2)
    assert contents.problems == ()
    key = contents.latest()[0].key
    assert (key.method, key.data_set) == ("bright", "rectangles")
    assert contents.latest()[0].area == 14 * 7


def test_processes_give_what_one_process_gives(folder: Path, tmp_path: Path) -> None:
    alone = evaluate(plan(folder, limit=3), tmp_path / "alone", quiet=True)
    together = evaluate(plan(folder, limit=3), tmp_path / "together", jobs=2, quiet=True)
    assert len(alone.latest()) == 9
    assert without_times(alone.latest()) == without_times(together.latest())


def test_resuming_repeats_nothing_and_ends_where_an_unbroken_run_does(
    folder: Path, tmp_path: Path
) -> None:
    whole = evaluate(plan(folder), tmp_path / "whole", quiet=True)
    out = tmp_path / "out"
    evaluate(plan(folder), out, quiet=True)
    # A crash in the middle of a line: method, set, 2 settings and a result are whole.
    lines = (out / FILE_NAME).read_bytes().splitlines(keepends=True)
    (out / FILE_NAME).write_bytes(b"".join(lines[:5]) + lines[5][:50])
    kept = (out / FILE_NAME).read_bytes()[: sum(map(len, lines[:5]))]
    Threshold.embedded = 0
    resumed = evaluate(plan(folder), out, resume=True, quiet=True)
    assert without_times(resumed.latest()) == without_times(whole.latest())
    assert (out / FILE_NAME).read_bytes().startswith(kept)
    assert len((out / FILE_NAME).read_bytes().splitlines()) == len(lines)
    # The first image was done, the second in part; loading the method embeds nothing of ours.
    assert Threshold.embedded <= 5 + 1
    before = (out / FILE_NAME).read_bytes()
    evaluate(plan(folder), out, resume=True, quiet=True)
    assert (out / FILE_NAME).read_bytes() == before


def test_other_settings_are_run_again_and_the_last_count(folder: Path, tmp_path: Path) -> None:
    centre = ProtocolSettings()
    short = ProtocolSettings(max_clicks=1)
    evaluate(plan(folder, settings=(centre,)), tmp_path, quiet=True)
    contents = evaluate(plan(folder, settings=(short,)), tmp_path, resume=True, quiet=True)
    assert len(contents.latest()) == 6
    assert len(contents.results) == 12
    assert all(len(result.trace.clicks) == 1 for result in contents.latest())
    # Asked for again, the first ones count, and nothing is run.
    again = evaluate(plan(folder, settings=(centre,), limit=2), tmp_path, resume=True, quiet=True)
    assert again.results == contents.results
    assert {result.settings for result in again.latest()} == {settings_hash(centre, "threshold-1")}
    assert settings_hash(centre, "1") != settings_hash(short, "1")
    assert settings_hash(centre, "1") != settings_hash(centre, "2")


def test_a_folder_with_results_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    evaluate(plan(folder, limit=1), tmp_path, quiet=True)
    with pytest.raises(BadRequestError, match="--resume"):
        evaluate(plan(folder, limit=1), tmp_path, quiet=True)


def test_bad_records_are_counted_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "1.png").write_bytes(b"not an image")
    cv2.imwrite(str(folder / "masks" / "2.png"), np.zeros((24, 32), np.uint8))
    cv2.imwrite(str(folder / "masks" / "3.png"), np.full((9, 9), 255, np.uint8))
    (folder / "masks" / "4.png").unlink()
    contents = evaluate(plan(folder, settings=(ProtocolSettings(),)), tmp_path, quiet=True)
    assert {result.key.image for result in contents.latest()} == {"0", "5"}
    assert len(contents.problems) == 4
    reasons = " ".join(problem.reason for problem in contents.problems)
    for part in ("1.png", "empty", "9 x 9"):
        assert part in reasons
    assert not any(problem.defect for problem in contents.problems)


def test_a_defect_of_a_method_is_counted_and_fails_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--methods", f"ok={SOURCE},bad={__name__}:Broken", "--data-sets"]
    words += [f"folder:{folder}", "--limit", "2", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "2 by a defect" in printed
    assert "ZeroDivisionError" in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [entry["method"] for entry in summary["summaries"]] == ["ok"]
    assert [problem["defect"] for problem in summary["problems"]] == [True, True]
    assert (tmp_path / "out" / "summary.md").read_text() == printed
    # Repaired, the records are measured and the problems forgotten.
    words[2] = f"ok={SOURCE},bad={SOURCE}"
    assert main([*words, "--resume"]) == 0


def test_a_failure_at_one_seed_is_not_hidden_by_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--methods", f"a={__name__}:Unlucky", "--data-sets", f"folder:{folder}"]
    words += ["--protocol", "sampled", "--seeds", "3", "--limit", "1", "--no-actions"]
    words += ["--out", str(tmp_path / "out")]
    Unlucky.begun = 0
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "Left out: 1 records or runs, 1 by a defect" in printed
    assert "(a, sampled, seed 1): ZeroDivisionError" in printed
    contents = read_results(tmp_path / "out")
    assert [result.key.seed for result in contents.latest()] == [0, 2]
    # It fails only once, so the run that is missing goes well.
    assert main([*words, "--resume"]) == 0
    contents = read_results(tmp_path / "out")
    assert [result.key.seed for result in contents.latest()] == [0, 2, 1]
    assert contents.problems == ()


def test_what_fails_with_new_weights_is_not_hidden_by_results_of_the_old(
    folder: Path, tmp_path: Path
) -> None:
    words = ["evaluate", "--methods", f"a={SOURCE}", "--data-sets", f"folder:{folder}"]
    words += ["--limit", "2", "--out", str(tmp_path / "out"), "--resume"]
    assert main(words) == 0
    words[2] = f"a={__name__}:Broken"
    assert main(words) == 1
    contents = read_results(tmp_path / "out")
    assert [problem.settings for problem in contents.problems] == 2 * [
        settings_hash(ProtocolSettings(), "broken")
    ]
    # With the old weights again, what is wrong with the new ones does not matter.
    words[2] = f"a={SOURCE}"
    assert main(words) == 0
    assert read_results(tmp_path / "out").problems == ()


def test_problems_of_earlier_versions_are_settled_by_what_ran_later(
    folder: Path, tmp_path: Path
) -> None:
    centre = (ProtocolSettings(),)
    first, second = evaluate(
        plan(folder, settings=centre, limit=2), tmp_path / "new", quiet=True
    ).latest()
    with ResultLog(tmp_path) as log:
        log.append([first])
    with (tmp_path / FILE_NAME).open("a") as file:
        for key in (first.key, second.key):
            values = {"data_set": key.data_set, "image": key.image, "reason": "?", "defect": True}
            values |= {"method": key.method, "object": key.object}
            file.write(json.dumps({"kind": "problem", **values}) + "\n")
    with ResultLog(tmp_path) as log:
        log.append([second])
    (problem,) = read_results(tmp_path).problems
    assert (problem.object, problem.run) == (first.key.object, "bright")


def test_ctrl_c_keeps_what_was_finished(folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--methods", f"a={__name__}:Interrupted", "--data-sets"]
    words += [f"folder:{folder}", "--out", str(tmp_path / "out")]
    Interrupted.embedded = 0
    assert main(words) == 130
    # The warm-up embeds, too.
    assert len(read_results(tmp_path / "out").results) == 3
    words[2] = f"a={SOURCE}"
    assert main([*words, "--resume"]) == 0
    assert len(read_results(tmp_path / "out").latest()) == 6


def test_a_process_that_is_killed_is_an_error_with_a_remedy(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--methods", f"a={__name__}:Deadly", "--data-sets", f"folder:{folder}"]
    assert main([*words, "--jobs", "2", "--out", str(tmp_path / "out")]) == 1
    assert "--resume and fewer --jobs" in capsys.readouterr().err


def test_typing_errors_are_answered_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(methods: str, data_set: str) -> str:
        words = ["evaluate", "--methods", methods, "--data-sets", data_set]
        assert main([*words, "--out", str(tmp_path / "never")]) == 1
        return capsys.readouterr().err

    assert "nowhere:Method" in fails("nowhere:Method", f"folder:{folder}")
    assert "alike" in fails(f"a={SOURCE},a={SOURCE}", f"folder:{folder}")
    assert "no known kind" in fails(f"a={SOURCE}", "unheard-of:/x")
    assert not (tmp_path / "never").exists()


def test_results_survive_writing_and_reading(folder: Path, tmp_path: Path) -> None:
    contents = evaluate(plan(folder, limit=2), tmp_path / "a", quiet=True)
    problem = Problem(data_set="s", image="i", reason="äöü\nnew line")
    with ResultLog(tmp_path / "b") as log:
        log.append([*contents.latest(), problem])
    again = read_results(tmp_path / "b")
    assert again.results == contents.results
    assert again.problems == (problem,)
    assert (again.methods, again.data_sets) == ((), ())
    assert isinstance(again.results[0].trace.clicks[0], Click)
    assert [entry.label for entry in contents.methods] == ["bright"]
    assert [(entry.name, entry.images) for entry in contents.data_sets] == [("rectangles", 6)]
    (tmp_path / "b" / FILE_NAME).write_text('{"kind": "result"}\n')
    with pytest.raises(DataError, match="Line 1"):
        read_results(tmp_path / "b")
