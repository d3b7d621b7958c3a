"""From an image to an embedding, from an embedding and clicks to ranked proposals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidiv_backend.caching import BoundedCache
from lidiv_backend.clicks import Click, pack_clicks, validate_clicks
from lidiv_backend.devices import best_precision, choose_device, place
from lidiv_backend.errors import BadClickError, BadImageError
from lidiv_backend.model import InferenceConfig, Model, load_model
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.observing import stage
from lidiv_backend.turns import Step, hurrying, turn

#: Bytes of embeddings that are kept unless told otherwise.
CACHE_BYTES = 512 * 2**20
#: Bytes of shown masks that are kept for the clicks that refine them.
_MEMO_BYTES = 32 * 2**20


class Proposal:
    """One segmentation that the model offers.

    Parameters
    ----------
    mask
        bool (H, W), the size of the image; or a function that makes it, called when the mask is
        first asked for (of six proposals for a photo of 12 megapixels, one is shown).
    score
        What IoU the model expects of the mask, in [0, 1] (`default`), or g's softmax (`paper`).
    head
        Which of the M outputs of f it came from, from 0.
    """

    __slots__ = ("_make", "_mask", "head", "score")

    def __init__(
        self,
        *,
        mask: NDArray[np.bool_] | Callable[[], NDArray[np.bool_]],
        score: float,
        head: int,
    ) -> None:
        self.score = score
        self.head = head
        self._mask: NDArray[np.bool_] | None = None
        self._make: Callable[[], NDArray[np.bool_]] | None = None
        if callable(mask):
            self._make = mask
        else:
            self._mask = mask

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, bool (H, W)."""
        # Two threads may both make it; they make the same. Read before the mask is looked for: once
        # it is there, what makes it goes, and with it the model's outputs, many times as large.
        make = self._make
        if self._mask is None:
            assert make is not None  # noqa: S101
            self._mask = make()
            self._make = None
        return self._mask

    def __repr__(self) -> str:
        return f"Proposal(score={self.score:.3f}, head={self.head})"


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageEmbedding:
    """Everything about an image that no click changes.

    Parameters
    ----------
    key
        Says of which image it is, and of which weights.
    height, width
        Size of the image in pixels.
    rgb
        float (1, 3, h, w) in [0, 1], the image as the networks see it.
    projected
        What `ProposalNetwork.project` gave.
    """

    key: str
    height: int
    width: int
    rgb: Tensor
    projected: tuple[Tensor, ...]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the network's input for each pixel of the image, along x and y."""
        return self.rgb.shape[-1] / self.width, self.rgb.shape[-2] / self.height

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(part.nbytes for part in (self.rgb, *self.projected))


class Predictor:
    """Proposes segmentations for clicks.

    It holds no state of an annotator's: what changes with a click is handed in and out. Any number
    of threads can use it together.

    Parameters
    ----------
    model
        f and g.
    encoder
        What they were trained on; None if f sees RGB alone.
    device
        Where to compute.
    precision
        ``float32`` or ``bfloat16`` (mixed).
    cache_bytes
        Bytes of embeddings that are kept.
    """

    def __init__(
        self,
        model: Model,
        encoder: Encoder | None,
        *,
        device: torch.device,
        precision: str = "float32",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self._encoder = encoder
        self._proposal = model.proposal
        self._selection = model.selection
        for module in (encoder, model.proposal, model.selection):
            if module is not None:
                place(module, device)
        self._embeddings: BoundedCache[str, ImageEmbedding] = BoundedCache(
            max_bytes=cache_bytes, name="embeddings"
        )
        self._memo: BoundedCache[tuple[str, tuple[Click, ...]], Tensor] = BoundedCache(
            max_bytes=_MEMO_BYTES
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "default",
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Predictor:
        """Load a preset or a folder of weights.

        Parameters
        ----------
        name
            ``default``, ``paper``, or a folder with ``model.json``.
        device
            The GPU if there is one, else the CPU, if not given.
        precision
            ``float32`` or ``bfloat16``; if not given, bfloat16 where the device has matrix units
            for it.
        cache_bytes
            Bytes of embeddings that are kept.

        Raises
        ------
        WeightsError
            If weights are missing, damaged or do not fit together.
        BadRequestError
            If the device does not exist.
        """
        model = load_model(name)
        encoder_name = model.description.proposal.encoder
        encoder = None if encoder_name is None else build_encoder(encoder_name)
        where = choose_device(device)
        return cls(
            model,
            encoder,
            device=where,
            precision=precision or best_precision(where),
            cache_bytes=cache_bytes,
        )

    @property
    def version(self) -> str:
        """Name and checksum of the weights."""
        return self.model.version

    @property
    def expects_iou(self) -> bool:
        """Whether a proposal's score is the IoU that is expected of it."""
        return self._selection is not None and self._selection.expects_iou

    def embed(self, rgb: NDArray[np.uint8]) -> ImageEmbedding:
        """Compute everything that no click changes, once for an image.

        Parameters
        ----------
        rgb
            uint8 (H, W, 3), upright.

        Returns
        -------
        ImageEmbedding
            The same object for the same image, as long as the cache holds it; threads that ask
            together wait for one computation.

        Raises
        ------
        BadImageError
            If it is no such array.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise BadImageError(
                f"An image must be uint8 of shape (H, W, 3), not {rgb.dtype} of {rgb.shape}.",
                remedy="Read it with `lidiv_backend.images.read_rgb`.",
            )
        height, width = rgb.shape[:2]
        small = self._resize(rgb)
        # The resized image decides the result, and hashing it takes the same time for any photo.
        digest = hashlib.blake2b(small.tobytes(), digest_size=16)
        digest.update(f"{height}x{width} {small.shape} {self.version}".encode())
        key = digest.hexdigest()
        with hurrying(key):
            return self._embeddings.get_or_compute(
                key,
                lambda: self._embed(key, small, height=height, width=width),
                size_of=lambda embedding: embedding.nbytes,
            )

    def predict(
        self,
        image: ImageEmbedding,
        clicks: Sequence[Click],
        previous: NDArray[np.bool_] | NDArray[np.floating] | None = None,
    ) -> list[Proposal]:
        """Propose segmentations.

        Parameters
        ----------
        image
            From `embed`.
        clicks
            All the clicks so far, in order; at least one.
        previous
            The mask that was shown before the last of them, bool or float (H, W). If it is not
            given and there are several clicks, they are replayed: each mask on the way is taken
            to be the best proposal. What was replayed once is remembered.

        Returns
        -------
        list of Proposal
            1 to M of them, best first.

        Raises
        ------
        BadClickError
            If there is no click, or one is not finite or outside the image.
        """
        if not clicks:
            raise BadClickError("There is no click.", remedy="Click on the object.")
        validate_clicks(clicks, height=image.height, width=image.width)
        shown: Tensor | None = None
        if self._uses_previous:
            if previous is not None:
                shown = self._shrink(previous, image)
            else:
                shown = self._replay(image, tuple(clicks[:-1]))
        logits, scores = self._propose(image, clicks, shown)
        ranked = self._rank(logits, scores)
        if self._uses_previous and previous is None:
            self._remember(image, tuple(clicks), logits[ranked[0]])
        height, width = image.height, image.width
        return [
            Proposal(
                # A copy: a view would keep the outputs of all heads, shown or not.
                mask=_enlarge(logits[head].numpy().copy(), height=height, width=width),
                score=float(scores[head]),
                head=head,
            )
            for head in ranked
        ]

    @property
    def _uses_previous(self) -> bool:
        return self.model.description.proposal.prompt.previous

    def _resize(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = rgb.shape[:2]
        target = input_size(
            height, width, self.model.description.inference, multiple=self._proposal.multiple
        )
        if target == (height, width):
            return np.ascontiguousarray(rgb)
        shrinks = target[0] * target[1] < height * width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(rgb, target[::-1], interpolation=how).astype(np.uint8, copy=False)

    @torch.inference_mode()
    def _embed(
        self, key: str, small: NDArray[np.uint8], *, height: int, width: int
    ) -> ImageEmbedding:
        with turn(Step.EMBED, key):
            # A copy: torch takes no arrays that are read-only, as those of Pillow are.
            rgb = torch.tensor(small, device=self.device).permute(2, 0, 1).unsqueeze(0)
            rgb = rgb.float().div_(255).contiguous(memory_format=torch.channels_last)
            with stage("embed", settle=self._settle), self._autocast():
                features = () if self._encoder is None else self._encoder(rgb)
                projected = self._proposal.project(rgb, features)
        return ImageEmbedding(key=key, height=height, width=width, rgb=rgb, projected=projected)

    @torch.inference_mode()
    def _propose(
        self, image: ImageEmbedding, clicks: Sequence[Click], shown: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (M, h, w) and scores (M,), float32 on the CPU."""
        with turn(Step.PROPOSE):
            packed = pack_clicks([clicks], scale=image.scale).to(self.device)
            prompt = Prompt(clicks=packed, previous=shown)
            with stage("propose", settle=self._settle), self._autocast():
                decoded = self._proposal(image.projected, prompt)
                logits = decoded.logits.float()
            with stage("select"), self._autocast():
                if self._selection is None:
                    # Ranked diversity: f ranks its own outputs.
                    scores = 0.5 ** torch.arange(1.0, logits.shape[1] + 1)
                else:
                    features = tuple(part.float() for part in decoded.features)
                    rated = self._selection(image.rgb, prompt, logits.sigmoid(), features)
                    scores = self._selection.score(rated.float())[0]
                return logits[0].cpu(), scores.cpu()

    def _replay(self, image: ImageEmbedding, clicks: tuple[Click, ...]) -> Tensor | None:
        """Mask that was shown after some clicks, (1, 1, h, w) in [0, 1]; None before the first."""
        shown, done = None, len(clicks)
        while done and (shown := self._memo.get((image.key, clicks[:done]))) is None:
            done -= 1
        for count in range(done + 1, len(clicks) + 1):
            logits, scores = self._propose(image, clicks[:count], shown)
            best = self._rank(logits, scores)[0]
            shown = self._remember(image, clicks[:count], logits[best])
        return shown

    def _remember(self, image: ImageEmbedding, clicks: tuple[Click, ...], logits: Tensor) -> Tensor:
        return self._memo.get_or_compute(
            (image.key, clicks),
            lambda: logits.sigmoid()[None, None].to(self.device),
            size_of=lambda mask: mask.nbytes,
        )

    def _shrink(
        self, previous: NDArray[np.bool_] | NDArray[np.floating], image: ImageEmbedding
    ) -> Tensor:
        """A mask as big as the image, as f takes it: (1, 1, h, w) in [0, 1]."""
        if previous.shape != (image.height, image.width):
            raise BadImageError(
                f"The previous mask has shape {previous.shape}, the image is "
                f"{image.height} x {image.width}.",
                remedy="Hand in the mask as it was returned.",
            )
        stride = self._proposal.output_stride
        size = image.rgb.shape[-1] // stride, image.rgb.shape[-2] // stride
        shrinks = size[0] < image.width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        mask = previous.astype(np.float32)
        if previous.dtype != np.bool_:
            mask = np.clip(np.nan_to_num(mask, nan=0.0), 0.0, 1.0)
        small = cv2.resize(mask, size, interpolation=how)
        return torch.from_numpy(small)[None, None].to(self.device)

    def _rank(self, logits: Tensor, scores: Tensor) -> list[int]:
        """Heads from best to worst, near-duplicates and empty masks left out."""
        order: list[int] = scores.argsort(descending=True, stable=True).tolist()
        limit = self.model.description.inference.merge_iou
        if limit is None:
            return order
        masks = (logits > 0).flatten(1).float()
        areas = masks.sum(1)
        common = masks @ masks.T
        iou = common / (areas[:, None] + areas[None] - common).clamp_min(1)
        kept: list[int] = []
        for head in order:
            if areas[head] > 0 and not any(iou[head, other] >= limit for other in kept):
                kept.append(head)
        return kept or order[:1]

    def _settle(self) -> None:
        """Wait for the GPU, so that each stage is told its own time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )


def input_size(
    height: int, width: int, config: InferenceConfig, *, multiple: int
) -> tuple[int, int]:
    """Height and width at which the networks see an image."""
    factor = 1.0
    if config.longest_side is not None:
        factor = config.longest_side / max(height, width)
    if config.max_pixels is not None:
        factor = min(factor, (config.max_pixels / (height * width)) ** 0.5)
    rows, columns = (
        max(multiple, round(side * factor / multiple) * multiple) for side in (height, width)
    )
    if config.max_pixels is not None and rows * columns > config.max_pixels:
        # The short side of a strip cannot shrink below a cell, so the long one has to.
        longest = config.max_pixels // min(rows, columns) // multiple * multiple
        rows, columns = (min(side, max(longest, multiple)) for side in (rows, columns))
    return rows, columns


def _enlarge(
    logits: NDArray[np.float32], *, height: int, width: int
) -> Callable[[], NDArray[np.bool_]]:
    """Make the mask of an image from the logits of a strided grid."""

    def make() -> NDArray[np.bool_]:
        if logits.shape == (height, width):
            return logits > 0
        full = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)
        mask: NDArray[np.bool_] = full > 0
        return mask

    return make
