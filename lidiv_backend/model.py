"""A folder of trained weights: f, g and ``model.json``, which says what they are.

``model.json`` names the architecture, the encoder by checksum, the checksums of the weights, how
they were trained and what they scored. Commands write it; nobody types it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidiv_backend.errors import WeightsError
from lidiv_backend.networks.encoders import encoder_checksum
from lidiv_backend.networks.proposal import (
    ProposalConfig,
    ProposalNetwork,
    PyramidNetwork,
    build_proposal_network,
)
from lidiv_backend.networks.selection import (
    PooledSelection,
    SelectionConfig,
    SelectionNetwork,
    build_selection_network,
)
from lidiv_backend.scope import Scope
from lidiv_backend.weights import load_tensors, save_tensors

_FORMAT = 1
_DESCRIPTION = "model.json"
_PROPOSAL, _SELECTION = "f.safetensors", "g.safetensors"
_ELSEWHERE, _REFERENCES = "elsewhere.safetensors", "references.safetensors"
# What `_ELSEWHERE` holds: the scope, and the weights of f and g under these names.
_OWN, _OTHERS, _F, _G = "own", "others", "f.", "g."


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """At what resolution the networks see an image, and which of their masks are offered.

    Parameters
    ----------
    longest_side
        The image is resized so that its longer side has so many pixels; None keeps its size.
    max_pixels
        A larger image is shrunk to so many pixels; None for no limit.
    merge_iou
        Of masks that agree to this IoU only the better one is offered; None offers all M.
    zoom_side
        From the second click on, the object is looked at in a window of its own, whose longer side
        becomes so many pixels, wherever that shows more; None never looks closer.
    look_ahead
        After one click, further alternatives are what f would answer to a second one so far beside
        the first mask, as a share of the square root of its area; None offers none. For a g that
        expects an IoU only.
    """

    longest_side: int | None = None
    max_pixels: int | None = 1_000_000
    merge_iou: float | None = None
    zoom_side: int | None = None
    look_ahead: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What ``model.json`` holds.

    Parameters
    ----------
    name
        The preset or experiment, for people.
    proposal, selection
        Architectures of f and g; without g the outputs of f are taken in their own order.
    inference
        How the networks are used.
    training
        How it was trained, as the trainer wrote it.
    results
        What it scored, as `lidiv evaluate` wrote it.
    """

    name: str
    proposal: ProposalConfig
    selection: SelectionConfig | None
    inference: InferenceConfig = InferenceConfig()
    training: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Elsewhere:
    """What answers where a fine-tuned model does not.

    Parameters
    ----------
    scope
        Images outside of it are meant.
    proposal, selection
        f and g, of the same architectures as those of the model.
    """

    scope: Scope
    proposal: ProposalNetwork
    selection: SelectionNetwork | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """Networks with trained weights.

    Parameters
    ----------
    description
        What they are.
    version
        Name and checksum, for example ``default-1a2b3c4d5e``.
    proposal, selection
        f and g.
    references
        float32 (K, D), what the images of its training are like, see
        `lidiv_backend.scope.describe_image`; None where it is not known.
    elsewhere
        What answers on images unlike those that it was fine-tuned on; None if it answers itself.
    """

    description: ModelDescription
    version: str
    proposal: ProposalNetwork
    selection: SelectionNetwork | None
    references: Tensor | None = None
    elsewhere: Elsewhere | None = None


def build_networks(
    proposal: ProposalConfig, selection: SelectionConfig | None
) -> tuple[ProposalNetwork, SelectionNetwork | None]:
    """Build f and g with random weights.

    Parameters
    ----------
    proposal, selection
        Architectures of f and g; without g the outputs of f are taken in their own order.

    Raises
    ------
    WeightsError
        If one of them is unknown or impossible, or they do not fit together.
    """
    try:
        if proposal.heads < 1:
            raise ValueError(f"f needs an output, not {proposal.heads} of them.")
        f = build_proposal_network(proposal)
        g = None if selection is None else build_selection_network(selection)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise WeightsError(
            f"There is no such network: {error}", remedy="Look at proposal and selection."
        ) from error
    if selection is not None and selection.heads != proposal.heads:
        raise WeightsError(
            f"f has {proposal.heads} outputs, g is made for {selection.heads}.",
            remedy="Set proposal.heads and selection.heads to the same number.",
        )
    if g is not None and isinstance(g, PooledSelection) != isinstance(f, PyramidNetwork):
        raise WeightsError(
            f"g '{g.config.architecture}' does not fit f '{proposal.architecture}'.",
            remedy="'can' goes with 'hypercolumn', 'pooled' with 'pyramid'.",
        )
    return f, g


def weights_folder(name: str | Path) -> Path:
    """Folder of a preset's weights, or the folder itself.

    Raises
    ------
    WeightsError
        If neither exists.
    """
    folder = Path(name)
    if (folder / _DESCRIPTION).is_file():
        return folder
    presets = Path(os.environ.get("LIDIV_WEIGHTS") or Path(__file__).parents[1] / "weights")
    if (presets / folder / _DESCRIPTION).is_file():
        return presets / folder
    known = sorted(path.parent.name for path in presets.glob(f"*/{_DESCRIPTION}"))
    raise WeightsError(
        f"There are no weights '{name}': neither is it a folder with {_DESCRIPTION}, nor is it a "
        f"preset in {presets}.",
        remedy=f"Presets there: {', '.join(known) or 'none'}. LIDIV_WEIGHTS names another folder.",
    )


def read_description(folder: Path) -> ModelDescription:
    """Read ``model.json``.

    Raises
    ------
    WeightsError
        If it is missing, damaged, of a newer format or for another encoder.
    """
    values = _read_json(folder)
    try:
        encoder = values["encoder"]
        if encoder is not None and encoder["sha256"] != encoder_checksum(encoder["name"]):
            raise WeightsError(
                f"The weights in {folder} were trained on another file of {encoder['name']} "
                f"({encoder['sha256'][:8]}...).",
                remedy="Use the version of LiDiv that they came with, or train again.",
            )
        proposal, selection = ProposalConfig.from_json(values["proposal"]), values["selection"]
        if proposal.encoder != (None if encoder is None else encoder["name"]):
            raise WeightsError(
                f"{folder / _DESCRIPTION} contradicts itself about the encoder.",
                remedy="Restore the folder, or train again.",
            )
        return ModelDescription(
            name=values["name"],
            proposal=proposal,
            selection=None if selection is None else SelectionConfig(**selection),
            inference=InferenceConfig(**values["inference"]),
            training=values["training"],
            results=values["results"],
        )
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder / _DESCRIPTION} is not what this version writes ({error}).",
            remedy="Use the version of LiDiv that wrote it.",
        ) from error


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read: {error}.", remedy="Restore the folder, or train again."
        ) from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} is not of format {_FORMAT}.", remedy="Use the version that wrote it."
        )
    return values


def load_model(name: str | Path) -> Model:
    """Load f and g.

    Parameters
    ----------
    name
        A preset (``default``, ``paper``) or a folder.

    Raises
    ------
    WeightsError
        If something is missing, damaged, or does not fit together.
    """
    folder = weights_folder(name)
    description = read_description(folder)
    files = _files(folder)
    proposal, selection = build_networks(description.proposal, description.selection)
    _fill(proposal, folder / _PROPOSAL, _load(folder, _PROPOSAL, files))
    if selection is not None:
        _fill(selection, folder / _SELECTION, _load(folder, _SELECTION, files))
    references: Tensor | None = None
    if _REFERENCES in files:
        references = _rows(folder / _REFERENCES, _load(folder, _REFERENCES, files), _OTHERS)
    elsewhere: Elsewhere | None = None
    if _ELSEWHERE in files:
        elsewhere = _elsewhere(description, folder / _ELSEWHERE, _load(folder, _ELSEWHERE, files))
    return Model(
        description=description,
        version=_version(description, files),
        proposal=proposal.eval().requires_grad_(False),
        selection=None if selection is None else selection.eval().requires_grad_(False),
        references=references,
        elsewhere=elsewhere,
    )


def _elsewhere(
    description: ModelDescription, path: Path, tensors: Mapping[str, Tensor]
) -> Elsewhere:
    scope = Scope(own=_rows(path, tensors, _OWN), others=_rows(path, tensors, _OTHERS))
    proposal, selection = build_networks(description.proposal, description.selection)
    for network, prefix in ((proposal, _F), (selection, _G)):
        if network is not None:
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            _fill(network, path, own)
            network.eval().requires_grad_(False)
    return Elsewhere(scope=scope, proposal=proposal, selection=selection)


def _rows(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Descriptions of images, float32 (N, D)."""
    rows = tensors.get(name)
    if rows is None or rows.ndim != 2 or not len(rows):
        raise WeightsError(
            f"{path} does not say what images are like ({name}).",
            remedy="Restore the folder, or train again.",
        )
    return rows.float()


def _files(folder: Path) -> dict[str, str]:
    """Checksums of the files of weights, by name."""
    files = _read_json(folder).get("files")
    if not isinstance(files, dict):
        raise WeightsError(
            f"{folder / _DESCRIPTION} does not say which files belong to it.",
            remedy="Restore the folder, or train again.",
        )
    return files


def _load(folder: Path, name: str, files: Mapping[str, str]) -> Mapping[str, Tensor]:
    if name not in files:
        raise WeightsError(
            f"{folder / _DESCRIPTION} names no {name}.",
            remedy="Restore the folder, or train again.",
        )
    return load_tensors(folder / name, sha256=files[name])


def _fill(network: torch.nn.Module, path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit the architecture in {_DESCRIPTION}: {error}",
            remedy="Use the version of LiDiv that wrote it.",
        ) from error


def _version(description: ModelDescription, files: Mapping[str, str]) -> str:
    inference = asdict(description.inference)
    for setting in ("zoom_side", "look_ahead"):
        if inference[setting] is None:
            # Weights from before there was this setting keep their version.
            del inference[setting]
    identity = json.dumps(
        [
            description.proposal.to_json(),
            inference,
            # References change no answer.
            sorted(item for item in files.items() if item[0] != _REFERENCES),
        ],
        sort_keys=True,
    )
    return f"{description.name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


def save_model(
    folder: Path,
    description: ModelDescription,
    proposal: Mapping[str, Tensor],
    selection: Mapping[str, Tensor] | None,
    *,
    references: Tensor | None = None,
    elsewhere: Elsewhere | None = None,
) -> str:
    """Write a folder of weights; each file aside first and then renamed.

    Parameters
    ----------
    folder
        Made if missing.
    description
        What the weights are.
    proposal, selection
        State dicts of f and g.
    references, elsewhere
        See `Model`.

    Returns
    -------
    str
        The version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        _PROPOSAL: proposal,
        _SELECTION: selection,
        _REFERENCES: None if references is None else {_OTHERS: references.half()},
        _ELSEWHERE: None if elsewhere is None else _tensors(elsewhere),
    }
    files = {
        name: save_tensors(tensors, folder / f"{name}.part")
        for name, tensors in contents.items()
        if tensors is not None
    }
    for name in contents:
        if name in files:
            (folder / f"{name}.part").replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    _write_description(folder, description, files)
    return _version(description, files)


def write_model(folder: Path, model: Model) -> str:
    """Write a model with all that belongs to it; see `save_model`.

    Parameters
    ----------
    folder
        Made if missing.
    model
        Its version is not asked for.

    Returns
    -------
    str
        The version.
    """
    return save_model(
        folder,
        model.description,
        model.proposal.state_dict(),
        None if model.selection is None else model.selection.state_dict(),
        references=model.references,
        elsewhere=model.elsewhere,
    )


def _tensors(elsewhere: Elsewhere) -> dict[str, Tensor]:
    scope = elsewhere.scope
    tensors = {_OWN: scope.own.half(), _OTHERS: scope.others.half()}
    for network, prefix in ((elsewhere.proposal, _F), (elsewhere.selection, _G)):
        if network is not None:
            tensors |= {prefix + name: value for name, value in network.state_dict().items()}
    return tensors


def _write_description(
    folder: Path, description: ModelDescription, files: Mapping[str, str]
) -> None:
    encoder = description.proposal.encoder
    values = {
        "format": _FORMAT,
        "name": description.name,
        "proposal": description.proposal.to_json(),
        "selection": None if description.selection is None else description.selection.to_json(),
        "encoder": None
        if encoder is None
        else {"name": encoder, "sha256": encoder_checksum(encoder)},
        "inference": asdict(description.inference),
        "files": dict(files),
        "training": dict(description.training),
        "results": dict(description.results),
    }
    aside = folder / f"{_DESCRIPTION}.part"
    aside.write_text(json.dumps(values, indent=1) + "\n")
    aside.replace(folder / _DESCRIPTION)


def record_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Add what was measured to ``model.json``; the version does not change."""
    description = read_description(folder)
    merged = {**description.results, **results}
    _write_description(folder, replace(description, results=merged), _files(folder))
