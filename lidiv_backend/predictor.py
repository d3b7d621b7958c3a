"""From an image to an embedding, from an embedding and clicks to ranked proposals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidiv_backend.ahead import points_beside
from lidiv_backend.caching import BoundedCache
from lidiv_backend.clicks import Click, pack_clicks, validate_clicks
from lidiv_backend.devices import best_precision, choose_device, place
from lidiv_backend.errors import BadClickError, BadImageError, BadRequestError
from lidiv_backend.model import InferenceConfig, Model, load_model
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.networks.proposal import ProposalNetwork
from lidiv_backend.networks.selection import SelectionNetwork
from lidiv_backend.observing import cache_asked, stage
from lidiv_backend.replays import Replays
from lidiv_backend.scope import describe_image
from lidiv_backend.turns import Step, hurrying, turn
from lidiv_backend.zoom import Shown, Window, choose_window

#: Bytes of embeddings that are kept unless told otherwise.
CACHE_BYTES = 512 * 2**20
#: What observers are told that the cache of embeddings is called.
EMBEDDINGS = "embeddings"
#: Bytes of shown masks that are kept for the clicks that refine them.
_MEMO_BYTES = 32 * 2**20
#: Bytes of embedded windows that are kept for further clicks on the objects in them.
_WINDOW_BYTES = 96 * 2**20
#: Longer side of the pixels that are kept of an image, for looking closer.
_PIXELS_SIDE = 2048

#: `Proposal.head` of what no output of f is for the clicks that were made.
LOOKED_AHEAD = -1

_Networks = tuple[ProposalNetwork, SelectionNetwork | None]


class Proposal:
    """One segmentation that the model offers.

    Parameters
    ----------
    mask
        bool (H, W), the size of the image; or what it is made from when it is first asked for (of
        six proposals for a photo of 12 megapixels, one is shown).
    score
        What IoU the model expects of the mask, in [0, 1] (`default`), or g's softmax (`paper`).
    head
        Which of the M outputs of f it came from, from 0; `LOOKED_AHEAD` for what f would answer to
        a further click.
    """

    __slots__ = ("_kept", "head", "score")

    def __init__(self, *, mask: NDArray[np.bool_] | Logits, score: float, head: int) -> None:
        self.score = score
        self.head = head
        self._kept: Logits | _Bits = mask if isinstance(mask, Logits) else _Bits.of(mask)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, bool (H, W), the caller's own."""
        # Two threads may both make it; they make the same.
        kept = self._kept
        if isinstance(kept, _Bits):
            return kept.mask()
        mask = kept.mask()
        self._kept = _Bits.of(mask)
        return mask

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, or comes to hold when its mask is asked for; the larger number."""
        return self._kept.nbytes

    def __repr__(self) -> str:
        return f"Proposal(score={self.score:.3f}, head={self.head})"


class Logits:
    """A mask before it is enlarged and cut off at zero.

    Parameters
    ----------
    values
        float32 (h, w), on the model's grid.
    window
        The part of the image that they cover; there is nothing outside.
    height, width
        Of the image, in pixels.
    """

    __slots__ = ("_height", "_values", "_width", "_window")

    def __init__(
        self, values: NDArray[np.float32], window: Window, *, height: int, width: int
    ) -> None:
        # A copy: a view would keep the outputs of all heads, shown or not.
        self._values = values.copy()
        self._window = window
        self._height = height
        self._width = width

    def mask(self) -> NDArray[np.bool_]:
        """Make the mask, bool (H, W)."""
        values, window = self._values, self._window
        if values.shape != (window.height, window.width):
            size = window.width, window.height
            values = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
        inside: NDArray[np.bool_] = values > 0
        if inside.shape == (self._height, self._width):
            return inside
        mask = np.zeros((self._height, self._width), dtype=np.bool_)
        mask[window.slices] = inside
        return mask

    @property
    def nbytes(self) -> int:
        """Bytes of the values, or of the mask's bits, whichever are more."""
        return max(self._values.nbytes, self._height * self._width // 8)


class _Bits:
    """A mask at an eighth of its size."""

    __slots__ = ("_bits", "_shape")

    def __init__(self, bits: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        self._bits = bits
        self._shape = shape

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> _Bits:
        return cls(np.packbits(mask), mask.shape)

    def mask(self) -> NDArray[np.bool_]:
        flat = np.unpackbits(self._bits, count=math.prod(self._shape))
        return flat.view(np.bool_).reshape(self._shape)

    @property
    def nbytes(self) -> int:
        return self._bits.nbytes


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageEmbedding:
    """Everything about an image that no click changes.

    Parameters
    ----------
    key
        Says of which image it is, and of which weights.
    height, width
        Size of the image in pixels.
    small
        uint8 (1, 3, h, w), the image at the size at which the networks see it.
    projected
        What `ProposalNetwork.project` gave.
    pixels
        uint8 (H', W', 3), the image for looking closer, large ones reduced; None where the model
        never does.
    covered
        Whether the model answers; otherwise the image is unlike those that it was fine-tuned on,
        and `Model.elsewhere` does.
    """

    key: str
    height: int
    width: int
    small: Tensor
    projected: tuple[Tensor, ...]
    pixels: NDArray[np.uint8] | None = None
    covered: bool = True

    @property
    def rgb(self) -> Tensor:
        """The image as the networks see it, float (1, 3, h, w) in [0, 1]."""
        # Made each time: it is four times as large.
        return _as_seen(self.small)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the network's input for each pixel of the image, along x and y."""
        return self.small.shape[-1] / self.width, self.small.shape[-2] / self.height

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        tensors = sum(part.nbytes for part in (self.small, *self.projected))
        return tensors + (0 if self.pixels is None else self.pixels.nbytes)

    @property
    def whole(self) -> Window:
        """All of the image."""
        return Window(left=0, top=0, width=self.width, height=self.height)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answer:
    """What the networks make of a prompt.

    Parameters
    ----------
    logits, scores
        float32 (M, h, w) and (M,), on the CPU.
    ranked
        Heads that are offered, best first.
    window
        The part of the image that the masks cover.
    """

    logits: Tensor
    scores: Tensor
    ranked: list[int]
    window: Window

    @property
    def shown(self) -> Shown:
        """The best proposal."""
        best: NDArray[np.float32] = self.logits[self.ranked[0]].sigmoid().numpy()
        return Shown(mask=best, window=self.window)


@dataclass(frozen=True)
class EmbeddingCaches:
    """What keeps embeddings by their keys, which name the weights, too.

    Parameters
    ----------
    images
        Of images.
    windows
        Of parts of them that were looked at closer.
    """

    images: BoundedCache[str, ImageEmbedding]
    windows: BoundedCache[str, ImageEmbedding]

    @classmethod
    def of(cls, image_bytes: int, window_bytes: int = _WINDOW_BYTES) -> EmbeddingCaches:
        """Make them, for one predictor or for several."""
        return cls(
            images=BoundedCache(max_bytes=image_bytes, name=EMBEDDINGS),
            windows=BoundedCache(max_bytes=window_bytes),
        )


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
        Bytes of images' embeddings that are kept.
    caches
        Keep them instead; several predictors may share them.
    replay
        Have a GPU replay the work that it is often asked for, see `lidiv_backend.replays`. No GPU
        has tried it yet, so nothing uses it unless asked to.
    """

    def __init__(
        self,
        model: Model,
        encoder: Encoder | None,
        *,
        device: torch.device,
        precision: str = "float32",
        cache_bytes: int = CACHE_BYTES,
        caches: EmbeddingCaches | None = None,
        replay: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self._encoder = encoder
        self._networks: dict[bool, _Networks] = {True: (model.proposal, model.selection)}
        if model.elsewhere is not None:
            self._networks[False] = model.elsewhere.proposal, model.elsewhere.selection
        for module in (encoder, *chain(*self._networks.values())):
            if module is not None:
                place(module, device)
        self._caches = caches or EmbeddingCaches.of(cache_bytes)
        self._memo: BoundedCache[tuple[str, tuple[Click, ...]], Shown] = BoundedCache(
            max_bytes=_MEMO_BYTES
        )
        self._replays = Replays.on(device) if replay else Replays(None)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "default",
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        caches: EmbeddingCaches | None = None,
        replay: bool = False,
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
            Bytes of images' embeddings that are kept.
        caches
            Keep them instead; several predictors may share them.
        replay
            See `Predictor`.

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
            caches=caches,
            replay=replay,
        )

    @property
    def version(self) -> str:
        """Name and checksum of the weights."""
        return self.model.version

    @property
    def expects_iou(self) -> bool:
        """Whether a proposal's score is the IoU that is expected of it."""
        selection = self.model.selection
        return selection is not None and selection.expects_iou

    def warm_up(self) -> None:
        """Do once what the first image and the first clicks would wait for; nothing is kept.

        Programs of a GPU are loaded when they are first needed, which takes seconds.
        """
        size = input_size(
            480, 640, self.model.description.inference, multiple=self.model.proposal.multiple
        )
        grey = np.full((*size, 3), 128, dtype=np.uint8)
        image = self._embed("", grey, height=size[0], width=size[1])
        clicks = [Click(x=size[1] / 2, y=size[0] / 2)]
        logits, _ = self._propose(image, clicks, None)
        if self._uses_previous:
            self._propose(image, clicks, logits[None, :1].sigmoid().to(self.device))

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
        small = self._resize(rgb, self.model.description.inference)
        # The resized image decides the result, and hashing it takes the same time for any photo.
        digest = hashlib.blake2b(small.tobytes(), digest_size=16)
        digest.update(f"{height}x{width} {small.shape} {self.version}".encode())
        key = digest.hexdigest()
        with hurrying(key):
            return self._caches.images.get_or_compute(
                key,
                lambda: replace(
                    self._embed(key, small, height=height, width=width), pixels=self._pixels(rgb)
                ),
                size_of=lambda embedding: embedding.nbytes,
            )

    def find(self, key: str) -> ImageEmbedding | None:
        """Return an embedding that is still kept, or None.

        Parameters
        ----------
        key
            Of an embedding that `embed` returned.
        """
        found = self._caches.images.get(key)
        if found is not None:
            cache_asked(EMBEDDINGS, hit=True)
        return found

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
        shown = self._shown_before(image, clicks, previous)
        answer = self._answer(image, clicks, shown)
        if self._uses_previous and previous is None:
            self._remember(image, tuple(clicks), answer.shown)
        return [
            Proposal(
                mask=Logits(
                    answer.logits[head].numpy(),
                    answer.window,
                    height=image.height,
                    width=image.width,
                ),
                score=float(answer.scores[head]),
                head=head,
            )
            for head in answer.ranked
        ]

    def can_look_ahead(self, clicks: Sequence[Click], proposals: Sequence[Proposal]) -> bool:
        """Whether there may be further alternatives to what `predict` gave; see `look_ahead`."""
        description = self.model.description
        return (
            description.inference.look_ahead is not None
            and self.expects_iou
            and len(clicks) == 1
            and clicks[0].positive
            and 0 < len(proposals) < description.proposal.heads
        )

    def look_ahead(
        self, image: ImageEmbedding, clicks: Sequence[Click], proposals: Sequence[Proposal]
    ) -> list[Proposal]:
        """Propose what a further click beside the best mask would lead to.

        Where f is sure of the part that was clicked on, its masks are alike, and few are offered:
        these take the free places.

        Parameters
        ----------
        image
            From `embed`.
        clicks
            The first click; after several there is little left to guess.
        proposals
            What `predict` gave for it.

        Returns
        -------
        list of Proposal
            None of them like another or like those of ``proposals``, with which they are M at most;
            best first. The score is what g expects of them given the click that was made.
        """
        distance = self.model.description.inference.look_ahead
        if distance is None or not self.can_look_ahead(clicks, proposals):
            return []
        height, width = image.small.shape[-2:]
        best = proposals[0].mask.view(np.uint8)
        seen = cv2.resize(best, (width, height), interpolation=cv2.INTER_NEAREST)
        across, down = image.scale
        further = [
            Click(
                x=min(max((x + 0.5) / across - 0.5, 0.0), image.width - 1.0),
                y=min(max((y + 0.5) / down - 0.5, 0.0), image.height - 1.0),
                positive=True,
            )
            for x, y in points_beside(seen.astype(bool), distance)
        ]
        if not further:
            return []
        logits, scores = self._imagine(image, clicks, further)
        heads = self.model.description.proposal.heads
        order = (scores[heads:].argsort(descending=True, stable=True) + heads).tolist()
        offered = [proposal.head for proposal in proposals]
        kept = _distinct(
            logits, order, limit=self.model.description.inference.merge_iou, beside=offered
        )
        return [
            Proposal(
                mask=Logits(
                    logits[index].numpy(), image.whole, height=image.height, width=image.width
                ),
                score=float(scores[index]),
                head=LOOKED_AHEAD,
            )
            for index in kept[: heads - len(proposals)]
        ]

    def prepare(
        self,
        image: ImageEmbedding,
        clicks: Sequence[Click],
        shown: NDArray[np.bool_] | NDArray[np.floating],
    ) -> None:
        """Get ready for a further click near the object, while the annotator looks at the mask.

        Parameters
        ----------
        image
            From `embed`.
        clicks
            All the clicks so far.
        shown
            The mask that they led to, bool or float (H, W).
        """
        # Asked first: a large mask is not converted for a model that never looks closer.
        if self._uses_previous and image.pixels is not None:
            window = self._window(image, clicks, _whole(shown, image))
            if window is not None:
                self._look_closer(image, window)

    @property
    def _uses_previous(self) -> bool:
        return self.model.description.proposal.prompt.previous

    def _resize(self, rgb: NDArray[np.uint8], inference: InferenceConfig) -> NDArray[np.uint8]:
        height, width = rgb.shape[:2]
        target = input_size(height, width, inference, multiple=self.model.proposal.multiple)
        if target == (height, width):
            return np.ascontiguousarray(rgb)
        shrinks = target[0] * target[1] < height * width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(rgb, target[::-1], interpolation=how).astype(np.uint8, copy=False)

    def _pixels(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """What is kept of an image for looking closer."""
        if self.model.description.inference.zoom_side is None:
            return None
        factor = _PIXELS_SIDE / max(rgb.shape[:2])
        if factor >= 1:
            return rgb.copy()
        size = max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor))
        return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)

    def _window(
        self, image: ImageEmbedding, clicks: Sequence[Click], shown: Shown | None
    ) -> Window | None:
        """Where to look closer; None for the whole image."""
        side = self.model.description.inference.zoom_side
        if side is None or shown is None or image.pixels is None:
            return None
        return choose_window(
            shown,
            clicks,
            height=image.height,
            width=image.width,
            side=side,
            density=max(image.scale),
        )

    def _look_closer(self, image: ImageEmbedding, window: Window) -> ImageEmbedding:
        """Embed a window of an image."""
        key = f"{image.key} {window}"

        def embed() -> ImageEmbedding:
            pixels = image.pixels
            assert pixels is not None  # noqa: S101 - or there would be no window
            rows, columns = (
                _scaled(first, length, part=within / of, end=within)
                for first, length, within, of in (
                    (window.top, window.height, pixels.shape[0], image.height),
                    (window.left, window.width, pixels.shape[1], image.width),
                )
            )
            inference = replace(
                self.model.description.inference,
                longest_side=self.model.description.inference.zoom_side,
            )
            small = self._resize(pixels[rows, columns], inference)
            return self._embed(
                key, small, height=window.height, width=window.width, covered=image.covered
            )

        # A click must not wait until nobody waits, if what gets ready for it came first.
        with hurrying(key):
            return self._caches.windows.get_or_compute(
                key, embed, size_of=lambda embedding: embedding.nbytes
            )

    def _answer(
        self, image: ImageEmbedding, clicks: Sequence[Click], shown: Shown | None
    ) -> _Answer:
        """Ask the networks, in a window of the image where that shows more."""
        window = self._window(image, clicks, shown)
        view = image if window is None else self._look_closer(image, window)
        if window is None:
            window = image.whole
        else:
            clicks = [window.moved(click) for click in clicks]
        previous: Tensor | None = None
        if shown is not None:
            stride = self.model.proposal.output_stride
            size = view.small.shape[-2] // stride, view.small.shape[-1] // stride
            previous = torch.from_numpy(shown.seen_in(window, size))[None, None].to(self.device)
        logits, scores = self._propose(view, clicks, previous)
        return _Answer(
            logits=logits, scores=scores, ranked=self._rank(logits, scores), window=window
        )

    @torch.inference_mode()
    def _embed(
        self,
        key: str,
        small: NDArray[np.uint8],
        *,
        height: int,
        width: int,
        covered: bool | None = None,
    ) -> ImageEmbedding:
        """Embed an image or a window of it; ``covered`` is decided by the image if not given."""
        with turn(Step.EMBED, key):
            # A copy: torch takes no arrays that are read-only, as those of Pillow are.
            seen = torch.tensor(small, device=self.device).permute(2, 0, 1).unsqueeze(0)
            image = ImageEmbedding(key=key, height=height, width=width, small=seen, projected=())
            rgb = image.rgb
            with stage("embed", settle=self._settle), self._autocast():
                features: tuple[Tensor, ...] = ()
                if self._encoder is not None:
                    features = self._replays("encode", self._encoder, rgb)
                if covered is None:
                    elsewhere = self.model.elsewhere
                    covered = elsewhere is None or elsewhere.scope.covers(describe_image(features))
                proposal, _ = self._networks[covered]

                def project(rgb: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
                    return proposal.project(rgb, features)

                projected = self._replays(("project", covered), project, rgb, *features)
        return replace(image, projected=projected, covered=covered)

    @torch.inference_mode()
    def describe(self, rgb: NDArray[np.uint8]) -> Tensor:
        """What an image is like, see `lidiv_backend.scope.describe_image`.

        Parameters
        ----------
        rgb
            uint8 (H, W, 3), upright.

        Raises
        ------
        BadRequestError
            If the model has no encoder that could tell.
        """
        if self._encoder is None:
            raise BadRequestError(
                f"{self.version} has no encoder, which could tell what an image is like.",
                remedy="Take weights whose f sees an encoder's features.",
            )
        small = torch.tensor(
            self._resize(rgb, self.model.description.inference), device=self.device
        )
        with self._autocast():
            features = self._encoder(_as_seen(small.permute(2, 0, 1).unsqueeze(0)))
        return describe_image(features)

    @torch.inference_mode()
    def _propose(
        self, image: ImageEmbedding, clicks: Sequence[Click], shown: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (M, h, w) and scores (M,), float32 on the CPU."""
        proposal, selection = self._networks[image.covered]
        # What was not shown has no tensor: with other numbers of them, work has other recordings.
        before = () if shown is None else (shown,)

        def propose(packed: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            prompt, projected = _prompt(packed, rest, shown is not None)
            decoded = proposal(projected, prompt)
            return decoded.logits.float(), *(part.float() for part in decoded.features)

        def select(packed: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            assert selection is not None  # noqa: S101 - or it is not called
            prompt, (small, logits, *features) = _prompt(packed, rest, shown is not None)
            rated = selection(_as_seen(small), prompt, logits.sigmoid(), features)
            return (selection.score(rated.float())[0],)

        with turn(Step.PROPOSE):
            room = self._replays.room(len(clicks))
            packed = pack_clicks([clicks], scale=image.scale, room=room).to(self.device)
            with stage("propose", settle=self._settle), self._autocast():
                logits, *features = self._replays(
                    ("propose", image.covered), propose, packed, *before, *image.projected
                )
            with stage("select"), self._autocast():
                if selection is None:
                    # Ranked diversity: f ranks its own outputs.
                    scores = 0.5 ** torch.arange(1.0, logits.shape[1] + 1)
                else:
                    seen = (image.small, logits, *features)
                    (scores,) = self._replays(
                        ("select", image.covered), select, packed, *before, *seen
                    )
                return logits[0].cpu(), scores.cpu()

    @torch.inference_mode()
    def _imagine(
        self, image: ImageEmbedding, clicks: Sequence[Click], further: Sequence[Click]
    ) -> tuple[Tensor, Tensor]:
        """What f answers to the clicks, and to them with each of some further ones.

        Returns
        -------
        tuple of Tensor
            Logits (M + N, h, w), those of the M masks for ``clicks`` and of the best for each
            further one, and what g expects of them given ``clicks`` alone, (M + N,).
        """
        with turn(Step.PROPOSE):
            asked = [list(clicks), *([*clicks, click] for click in further)]
            packed = pack_clicks(asked, scale=image.scale).to(self.device)
            with stage("propose", settle=self._settle), self._autocast():
                proposal, selection = self._networks[image.covered]
                assert selection is not None  # noqa: S101 - g expects an IoU
                projected = [part.expand(len(asked), -1, -1, -1) for part in image.projected]
                decoded = proposal(projected, Prompt(clicks=packed))
                logits = decoded.logits.float()
                features = tuple(part.float() for part in decoded.features)
                rgb = image.rgb
                imagined = logits[1:]
                best = selection(
                    rgb.expand(len(further), -1, -1, -1),
                    Prompt(clicks=packed[1:]),
                    imagined.sigmoid(),
                    tuple(part[1:] for part in features),
                ).argmax(1)
                rows = torch.arange(len(further), device=self.device)
                everything = torch.cat([logits[0], imagined[rows, best]])
                rated = selection(
                    rgb,
                    Prompt(clicks=packed[:1]),
                    everything[None].sigmoid(),
                    tuple(part[:1] for part in features),
                )
                scores = selection.score(rated.float())[0]
            return everything.cpu(), scores.cpu()

    def _shown_before(
        self,
        image: ImageEmbedding,
        clicks: Sequence[Click],
        previous: NDArray[np.bool_] | NDArray[np.floating] | None,
    ) -> Shown | None:
        """The mask before the last click, as f takes it; None before the first."""
        if not self._uses_previous:
            return None
        if previous is not None:
            return _whole(previous, image)
        return self._replay(image, tuple(clicks[:-1]))

    def _replay(self, image: ImageEmbedding, clicks: tuple[Click, ...]) -> Shown | None:
        """Mask that was shown after some clicks; None before the first."""
        shown, done = None, len(clicks)
        while done and (shown := self._memo.get((image.key, clicks[:done]))) is None:
            done -= 1
        for count in range(done + 1, len(clicks) + 1):
            answer = self._answer(image, clicks[:count], shown)
            shown = self._remember(image, clicks[:count], answer.shown)
        return shown

    def _remember(self, image: ImageEmbedding, clicks: tuple[Click, ...], shown: Shown) -> Shown:
        return self._memo.get_or_compute(
            (image.key, clicks), lambda: shown, size_of=lambda kept: kept.mask.nbytes
        )

    def _rank(self, logits: Tensor, scores: Tensor) -> list[int]:
        """Heads from best to worst, near-duplicates and empty masks left out."""
        order: list[int] = scores.argsort(descending=True, stable=True).tolist()
        limit = self.model.description.inference.merge_iou
        if limit is None:
            return order
        return _distinct(logits, order, limit=limit) or order[:1]

    def _settle(self) -> None:
        """Wait for the GPU, so that each stage is told its own time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )


def _as_seen(small: Tensor) -> Tensor:
    """An image as the networks see it, float (B, 3, h, w) in [0, 1], from uint8."""
    return small.float().div_(255).contiguous(memory_format=torch.channels_last)


def _prompt(
    packed: Tensor, rest: Sequence[Tensor], refines: bool
) -> tuple[Prompt, Sequence[Tensor]]:
    """The prompt of packed clicks and, if they refine a mask, the first tensor of the rest."""
    if refines:
        return Prompt(clicks=packed, previous=rest[0]), rest[1:]
    return Prompt(clicks=packed), rest


def _distinct(
    logits: Tensor, order: Iterable[int], *, limit: float | None, beside: Sequence[int] = ()
) -> list[int]:
    """Leave out of ``order`` masks that are empty, or like one before or one ``beside``.

    Parameters
    ----------
    logits
        float32 (N, h, w).
    order, beside
        Indices of masks.
    limit
        IoU from which two masks are alike; None for identical ones only.
    """
    limit = 1.0 if limit is None else limit
    masks = (logits > 0).flatten(1).float()
    areas = masks.sum(1)
    common = masks @ masks.T
    iou = common / (areas[:, None] + areas[None] - common).clamp_min(1)
    kept: list[int] = []
    for index in order:
        if areas[index] > 0 and not any(iou[index, other] >= limit for other in (*beside, *kept)):
            kept.append(index)
    return kept


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


def _scaled(first: int, length: int, *, part: float, end: int) -> slice:
    """A range of pixels in an image that is ``part`` as large, at least one of them."""
    start = min(round(first * part), end - 1)
    return slice(start, max(round((first + length) * part), start + 1))


def _whole(mask: NDArray[np.bool_] | NDArray[np.floating], image: ImageEmbedding) -> Shown:
    """A mask as large as the image, as callers hand it in.

    Raises
    ------
    BadImageError
        If it has another size.
    """
    if mask.shape != (image.height, image.width):
        raise BadImageError(
            f"The previous mask has shape {mask.shape}, the image is "
            f"{image.height} x {image.width}.",
            remedy="Hand in the mask as it was returned.",
        )
    values = np.array(mask, dtype=np.float32)
    if mask.dtype != np.bool_:
        np.nan_to_num(values, copy=False, nan=0.0)
        np.clip(values, 0.0, 1.0, out=values)
    return Shown(mask=values, window=image.whole)
