"""A folder of weights: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lidiv_backend import Click, Predictor
from lidiv_backend.errors import WeightsError
from lidiv_backend.model import (
    Elsewhere,
    InferenceConfig,
    build_networks,
    load_model,
    read_description,
    record_results,
    weights_folder,
    write_model,
)
from lidiv_backend.networks.proposal import ProposalConfig
from lidiv_backend.networks.selection import SelectionConfig
from lidiv_backend.scope import Scope
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of a tiny model."""
    path = tmp_path / "tiny"
    write_model(path, tiny.model(tiny.description()))
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "model.json").read_text())
    change(values)
    (folder / "model.json").write_text(json.dumps(values))


class TestRoundTrip:
    @pytest.mark.parametrize("ranked", [False, True])
    @pytest.mark.parametrize("pyramid", [False, True])
    def test_the_same_version_and_the_same_tensors(
        self, tmp_path: Path, ranked: bool, pyramid: bool
    ) -> None:
        about = tiny.description(
            ranked=ranked,
            pyramid=pyramid,
            inference=InferenceConfig(longest_side=64, merge_iou=0.9),
        )
        made = tiny.model(about)
        version = write_model(tmp_path / "x", made)
        loaded = load_model(tmp_path / "x")
        assert loaded.version == version
        assert loaded.description == about
        for before, after in (
            (made.proposal, loaded.proposal),
            (made.selection, loaded.selection),
        ):
            assert (before is None) == (after is None)
            if before is not None and after is not None:
                tensors = after.state_dict()
                assert all(torch.equal(t, tensors[k]) for k, t in before.state_dict().items())
                assert not after.training
                assert not any(parameter.requires_grad for parameter in after.parameters())

    def test_the_same_proposals(self, folder: Path) -> None:
        before = tiny.predictor(tiny.description())
        after = Predictor.from_pretrained(folder, device="cpu", precision="float32")
        rgb, clicks = tiny.photo(30, 40), [Click(x=20, y=10), Click(x=3, y=3, positive=False)]
        first = before.predict(before.embed(rgb), clicks)
        second = after.predict(after.embed(rgb), clicks)
        assert [p.score for p in first] == [p.score for p in second]
        assert all((p.mask == q.mask).all() for p, q in zip(first, second, strict=True))

    def test_saving_again_gives_the_same_version(self, folder: Path, tmp_path: Path) -> None:
        version = load_model(folder).version
        assert write_model(tmp_path / "again", tiny.model(tiny.description())) == version
        assert write_model(tmp_path / "other", tiny.model(tiny.description(), seed=1)) != version

    def test_how_it_is_used_is_part_of_the_version(self, folder: Path, tmp_path: Path) -> None:
        about = tiny.description(inference=InferenceConfig(merge_iou=0.5))
        assert write_model(tmp_path / "x", tiny.model(about)) != load_model(folder).version

    def test_weights_from_before_one_could_look_closer_or_ahead_keep_their_version(
        self, folder: Path
    ) -> None:
        values = json.loads((folder / "model.json").read_text())
        version = load_model(folder).version
        del values["inference"]["zoom_side"], values["inference"]["look_ahead"]
        before = [values["proposal"], values["inference"], sorted(values["files"].items())]
        digest = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
        assert version == f"{values['name']}-{digest[:10]}"
        (folder / "model.json").write_text(json.dumps(values))
        assert load_model(folder).version == version

    def test_what_training_images_are_like_is_kept_and_does_not_change_the_version(
        self, folder: Path, tmp_path: Path
    ) -> None:
        made, references = load_model(folder), torch.tensor([[0.6, 0.8], [1.0, 0.0]])
        described = dataclasses.replace(made, references=references)
        assert write_model(tmp_path / "x", described) == made.version
        found = load_model(tmp_path / "x")
        assert found.references is not None
        torch.testing.assert_close(found.references, references, atol=1e-3, rtol=0)
        # Saved without them, none are left behind.
        write_model(tmp_path / "x", made)
        assert load_model(tmp_path / "x").references is None

    @pytest.mark.parametrize("ranked", [False, True])
    def test_what_answers_elsewhere_is_kept_and_is_part_of_the_version(
        self, tmp_path: Path, ranked: bool
    ) -> None:
        about = tiny.description(ranked=ranked)
        made, other = tiny.model(about), tiny.model(about, seed=1)
        scope = Scope(own=torch.tensor([[0.6, 0.8]]), others=torch.tensor([[1.0, 0.0]]))
        elsewhere = Elsewhere(scope=scope, proposal=other.proposal, selection=other.selection)
        version = write_model(tmp_path / "x", dataclasses.replace(made, elsewhere=elsewhere))
        assert version != write_model(tmp_path / "alone", made)
        found = load_model(tmp_path / "x")
        assert found.version == version
        assert found.elsewhere is not None
        torch.testing.assert_close(found.elsewhere.scope.own, scope.own, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.elsewhere.scope.others, scope.others)
        for before, after in (
            (made.proposal, found.proposal),
            (other.proposal, found.elsewhere.proposal),
            (other.selection, found.elsewhere.selection),
        ):
            assert (before is None) == (after is None)
            if before is not None and after is not None:
                tensors = after.state_dict()
                assert all(torch.equal(t, tensors[k]) for k, t in before.state_dict().items())

    @pytest.mark.parametrize("rows", [torch.zeros(0, 2), torch.zeros(2)])
    def test_a_scope_without_images_is_refused(self, tmp_path: Path, rows: torch.Tensor) -> None:
        made = tiny.model(tiny.description())
        scope = Scope(own=rows, others=torch.tensor([[1.0, 0.0]]))
        elsewhere = Elsewhere(scope=scope, proposal=made.proposal, selection=made.selection)
        write_model(tmp_path / "x", dataclasses.replace(made, elsewhere=elsewhere))
        with pytest.raises(WeightsError, match="what images are like"):
            load_model(tmp_path / "x")

    def test_results_do_not_change_the_version(self, folder: Path) -> None:
        version = load_model(folder).version
        record_results(folder, {"grabcut": {"noc85": 1.5}})
        record_results(folder, {"coco": {"noc85": 2.5}})
        record_results(folder, {"grabcut": {"noc85": 1.4}})
        assert load_model(folder).version == version
        assert read_description(folder).results == {
            "grabcut": {"noc85": 1.4},
            "coco": {"noc85": 2.5},
        }

    def test_nothing_is_left_beside_the_weights(self, folder: Path) -> None:
        names = {path.name for path in folder.iterdir()}
        assert names == {"f.safetensors", "g.safetensors", "model.json"}
        # A model without g takes the place of one with g.
        write_model(folder, tiny.model(tiny.description(ranked=True)))
        assert {path.name for path in folder.iterdir()} == {"f.safetensors", "model.json"}

    def test_a_crash_while_writing_leaves_the_old_weights(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = load_model(folder).version

        def fail(tensors: object, path: Path) -> str:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("lidiv_backend.model.save_tensors", fail)
        with pytest.raises(OSError, match="No space"):
            write_model(folder, tiny.model(tiny.description(), seed=1))
        assert load_model(folder).version == version


class TestFolder:
    def test_presets_are_found_by_name(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIDIV_WEIGHTS", str(folder.parent))
        assert weights_folder("tiny") == folder
        assert weights_folder(folder) == folder

    def test_an_unknown_name_lists_what_there_is(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LIDIV_WEIGHTS", str(folder.parent))
        with pytest.raises(WeightsError, match=r"no weights 'large'.*Presets there: tiny"):
            load_model("large")


class TestDamage:
    @pytest.mark.parametrize("name", ["f.safetensors", "g.safetensors"])
    def test_another_file_is_refused(self, folder: Path, name: str) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"have checksum .*expected"):
            load_model(folder)

    @pytest.mark.parametrize("name", ["f.safetensors", "g.safetensors"])
    def test_a_missing_file_is_refused(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(WeightsError, match="cannot be read"):
            load_model(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 2}'])
    def test_a_damaged_description_is_refused(self, folder: Path, text: str) -> None:
        (folder / "model.json").write_text(text)
        with pytest.raises(WeightsError) as caught:
            load_model(folder)
        assert caught.value.remedy

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v: v.pop("proposal"), "not what this version writes"),
            (lambda v: v.pop("files"), "which files"),
            (lambda v: v["files"].pop("f.safetensors"), "names no f.safetensors"),
            (lambda v: v["files"].pop("g.safetensors"), "names no g.safetensors"),
            (lambda v: v["proposal"].update(shape=3), "not what this version writes"),
            (lambda v: v["proposal"].update(architecture="x"), "architecture of f is 'x'"),
            (lambda v: v["proposal"].update(body="x"), "body of f is 'x'"),
            (lambda v: v["selection"].update(architecture="x"), "architecture of g is 'x'"),
            (lambda v: v["selection"].update(architecture="pooled"), "does not fit f"),
            (lambda v: v["proposal"].update(heads=5), "f has 5 outputs, g is made for 4"),
            (lambda v: v["proposal"].update(heads="4"), "no such network"),
            (lambda v: v["proposal"].update(width=32), "does not fit the architecture"),
            (lambda v: v["proposal"].update(encoder="vgg19"), "contradicts itself"),
            (lambda v: v.update(encoder={"name": "x", "sha256": ""}), "not what this version"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, folder: Path, change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        edit(folder, change)
        with pytest.raises(WeightsError, match=message) as caught:
            load_model(folder)
        assert caught.value.remedy

    def test_another_file_of_the_encoder_is_refused(self, tmp_path: Path) -> None:
        write_model(tmp_path, tiny.model(tiny.description(pyramid=True)))
        edit(tmp_path, lambda values: values["encoder"].update(sha256="0" * 64))
        with pytest.raises(WeightsError, match="trained on another file of mobilesam"):
            load_model(tmp_path)

    def test_a_missing_encoder_says_what_to_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LIDIV_CACHE", str(tmp_path / "cache"))
        write_model(tmp_path / "x", tiny.model(tiny.description(pyramid=True)))
        with pytest.raises(WeightsError, match="lidiv weights fetch mobilesam"):
            Predictor.from_pretrained(tmp_path / "x")


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WeightsError, match="f has 6 outputs, g is made for 2"):
        build_networks(ProposalConfig(encoder=None), SelectionConfig(heads=2))
    with pytest.raises(WeightsError, match="g 'can' does not fit f 'pyramid'"):
        build_networks(
            ProposalConfig(architecture="pyramid", encoder="mobilesam"), SelectionConfig()
        )
    for heads in (0, -1):
        with pytest.raises(WeightsError):
            build_networks(dataclasses.replace(ProposalConfig(encoder=None), heads=heads), None)
