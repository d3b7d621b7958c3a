"""Images of tasks: where they may be fetched from, with which token, and how much of them."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urljoin, urlsplit, urlunsplit

import jwt
import numpy as np
import requests
import urllib3
from numpy.typing import NDArray
from pydantic import SecretStr

from lidiv_backend.caching import BoundedCache
from lidiv_backend.errors import BadImageError, BadRequestError, LidivError
from lidiv_backend.images import read_rgb
from lidiv_backend.labelstudio.guarded_http import (
    Reach,
    RefusedAddressError,
    TimeIsUpError,
    open_session,
)
from lidiv_backend.observing import stage

_MAX_HOPS = 6
_UPLOAD = "/data/upload/"
_CHUNK = 1 << 16
# Access tokens last 300 seconds.
_ACCESS_SECONDS = 240.0
#: What is known of an image is kept so long; the file behind an address may change.
KEPT_SECONDS = 600.0
# Addresses within Label Studio that give files. Only these get the token.
_FILE_PATHS = re.compile(r"/(data|storage-data)/|/(tasks|projects)/\d+/(presign|resolve)/")
# No host has these, and not everybody agrees where one with them ends.
_NO_HOST = re.compile(r"""[\s\\"<>^`{|}]""")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Label Studio fetches these by itself, and gives an address that is good for a while.
_CLOUD_SCHEMES = ("s3", "gs", "azure-blob")


class ImageAddressError(BadRequestError):
    """An image's address is one that the backend does not fetch from."""

    status = 403
    kind = "image address"


class ImageFetchError(LidivError):
    """An image's source does not answer, or answers with an error."""

    status = 502
    kind = "image source"


class ImageAccessError(ImageFetchError):
    """Label Studio does not accept the token."""

    kind = "token"


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The Label Studio that a task belongs to.

    Parameters
    ----------
    url
        Its address.
    token
        Legacy token or personal access token; empty if there is none.
    configured
        Whether the operator named this Label Studio. One that only said so itself, by ``/setup``,
        is not followed to link-local addresses, where clouds keep their secrets.
    """

    url: str
    token: SecretStr = field(default_factory=lambda: SecretStr(""))
    configured: bool = False


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """What a download may take.

    Parameters
    ----------
    max_bytes
        Size of the file.
    max_pixels
        Size of the image; checked before it is decoded.
    connect_seconds, read_seconds
        Waiting for a connection, and between two pieces of an answer.
    total_seconds
        All of it, redirects included.
    """

    max_bytes: int = 200_000_000
    max_pixels: int = 100_000_000
    connect_seconds: float = 5.0
    read_seconds: float = 15.0
    total_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class _Host:
    name: str
    port: int

    @classmethod
    def of(cls, url: SplitResult) -> _Host:
        return cls((url.hostname or "").lower(), url.port or _DEFAULT_PORTS.get(url.scheme, 0))


class AllowedHosts:
    """Hosts that the configuration allows besides Label Studio.

    Parameters
    ----------
    patterns
        ``host``, ``host:port``, or ``*.domain`` for all hosts below a domain. They may have
        private addresses: the operator has named them.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(pattern.strip().lower() for pattern in patterns if pattern.strip())

    def __contains__(self, host: _Host) -> bool:
        return any(self._fits(pattern, host) for pattern in self._patterns)

    @staticmethod
    def _fits(pattern: str, host: _Host) -> bool:
        name, _, port = pattern.rpartition(":") if ":" in pattern else (pattern, "", "")
        if port and port != str(host.port):
            return False
        if name.startswith("*."):
            return host.name.endswith(name[1:])
        return host.name == name


@dataclass(frozen=True, slots=True)
class _Hop:
    """One request of a download: where to, and with what rights."""

    url: str
    reach: Reach
    with_token: bool
    from_label_studio: bool


@dataclass
class _AccessTokens:
    """Short-lived access tokens that personal access tokens were exchanged for."""

    clock: Callable[[], float]
    _lock: Lock = field(default_factory=Lock)
    _known: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)

    def find(self, url: str, token: str) -> str | None:
        with self._lock:
            access, made = self._known.get((url, token), ("", 0.0))
        return access if access and self.clock() - made < _ACCESS_SECONDS else None

    def keep(self, url: str, token: str, access: str) -> None:
        with self._lock:
            self._known[(url, token)] = (access, self.clock())

    def forget(self, url: str, token: str) -> None:
        with self._lock:
            self._known.pop((url, token), None)


class ImageSource:
    """Fetches and decodes the images of tasks.

    Parameters
    ----------
    allowed_hosts
        Hosts beside Label Studio.
    limits
        What a download may take.
    cache_bytes
        Decoded images that are kept, so that a click does not fetch again.
    cache_seconds
        How long.
    ca_bundle
        Certificates to trust; None for the usual ones.
    clock
        Seconds that only grow; for tests.
    """

    def __init__(
        self,
        *,
        allowed_hosts: Iterable[str] = (),
        limits: FetchLimits | None = None,
        cache_bytes: int = 80_000_000,
        cache_seconds: float = KEPT_SECONDS,
        ca_bundle: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed = AllowedHosts(allowed_hosts)
        self._limits = limits or FetchLimits()
        self._ca_bundle = ca_bundle
        self._clock = clock
        self._access_tokens = _AccessTokens(clock)
        self._cache: BoundedCache[tuple[str, str], NDArray[np.uint8]] = BoundedCache(
            max_bytes=cache_bytes, max_age=cache_seconds, name="images", clock=clock
        )

    def rgb(
        self, address: str, connection: Connection | None, *, task: int | None
    ) -> NDArray[np.uint8]:
        """Fetch and decode an image, or find it in the cache.

        Parameters
        ----------
        address
            As it stands in the task's data: a path within Label Studio, an HTTP address, or one
            of cloud storage.
        connection
            The Label Studio that the task belongs to; None if that is not known.
        task
            Label Studio's number of the task; cloud storage needs it.

        Returns
        -------
        ndarray
            uint8 (H, W, 3), upright.

        Raises
        ------
        ImageAddressError
            If the address is one that is not fetched from.
        ImageAccessError
            If Label Studio refuses the token.
        ImageFetchError
            If the source fails, or is too slow.
        BadImageError
            If the file is no image, or too large.
        """

        def read() -> NDArray[np.uint8]:
            with stage("fetch"):
                content = self._download(address, connection, task)
            with stage("decode"):
                return read_rgb(content, max_pixels=self._limits.max_pixels)

        key = self.key(address, connection, task=task)
        return self._cache.get_or_compute(key, read, size_of=lambda rgb: rgb.nbytes)

    def key(
        self, address: str, connection: Connection | None, *, task: int | None
    ) -> tuple[str, str]:
        """Name an image: what has the same key is the same image.

        Parameters
        ----------
        address, connection, task
            As for `rgb`.

        Raises
        ------
        ImageAddressError
            If the address is none.
        """
        where = connection.url if connection else ""
        # Cloud addresses are resolved through a task's own storage.
        is_cloud = _split(address).scheme in _CLOUD_SCHEMES
        return where, f"{task} {address}" if is_cloud else address

    def _download(self, address: str, connection: Connection | None, task: int | None) -> bytes:
        deadline = self._clock() + self._limits.total_seconds

        def seconds_left() -> float:
            return deadline - self._clock()

        hop = self._first_hop(address, connection, task)
        renewed = False
        for _ in range(_MAX_HOPS):
            headers = self._authorization(hop, connection, seconds_left)
            with self._sent("GET", hop, seconds_left, headers=headers) as answer:
                if (
                    answer.status_code == 401
                    and not renewed
                    and self._forget_access(hop, connection)
                ):
                    renewed = True
                elif answer.is_redirect:
                    hop = self._next_hop(answer.headers["location"], hop, connection)
                elif answer.status_code == 404 and hop.from_label_studio and _UPLOAD in hop.url:
                    # Where uploads lie in cloud storage, Label Studio serves them elsewhere.
                    base, _, name = hop.url.partition(_UPLOAD)
                    path = f"/storage-data/uploaded/?filepath=upload/{quote(unquote(name))}"
                    hop = self._hop(base + path, connection)
                else:
                    return self._body(answer, hop)
        raise ImageFetchError(
            f"The image {_shown(address)} is redirected more than {_MAX_HOPS} times.",
            remedy="Give the task the image's final address.",
        )

    def _first_hop(self, address: str, connection: Connection | None, task: int | None) -> _Hop:
        parts = _split(address)
        _refuse_climbing(address)
        if parts.scheme in _CLOUD_SCHEMES:
            if task is None:
                raise ImageAddressError(
                    f"The image {_shown(address)} is in cloud storage, and the request does not "
                    "say for which task.",
                    remedy="Send the task's number.",
                )
            encoded = base64.urlsafe_b64encode(address.encode()).decode()
            path = f"/tasks/{task}/presign/?fileuri={encoded}"
            return self._hop(_join(_required(connection, address).url, path), connection)
        if parts.scheme in _DEFAULT_PORTS:
            hop = self._hop(address, connection)
            if hop.reach is Reach.PUBLIC:
                raise ImageAddressError(
                    f"Images are not fetched from {parts.hostname!r}.",
                    remedy="Add the host to LIDIV_ALLOWED_IMAGE_HOSTS, or import the images into "
                    "Label Studio.",
                )
            return hop
        if parts.scheme or parts.netloc or not address.strip():
            raise ImageAddressError(
                f"The image's address {_shown(address)} is of a kind that is not fetched.",
                remedy="Upload the image to Label Studio, or give an http(s), s3, gs or azure-blob "
                "address.",
            )
        path = "/" + address.lstrip("/")
        path = f"/data{path}" if path.startswith("/upload/") else path
        if not _FILE_PATHS.match(path):
            raise ImageAddressError(
                f"The image's address {_shown(address)} is not that of a file in Label Studio.",
                remedy="Upload the image to Label Studio, or connect a storage.",
            )
        return self._hop(_join(_required(connection, address).url, path), connection)

    def _next_hop(self, location: str, hop: _Hop, connection: Connection | None) -> _Hop:
        with contextlib.suppress(UnicodeError):
            # Headers arrive as Latin-1, and most servers mean UTF-8.
            location = location.encode("latin-1").decode()
        _split(location)
        target = urljoin(hop.url, location)
        parts = _split(target)
        if parts.scheme not in _DEFAULT_PORTS:
            raise ImageAddressError(
                f"The image is redirected to {_shown(target)}, which is not fetched.",
                remedy="Check the address in the task's data.",
            )
        if hop.from_label_studio and "/user/login" in parts.path:
            raise _token_refused()
        following = self._hop(target, connection)
        # Label Studio may point to its storage anywhere on the open internet; any other source
        # only to itself and to allowed hosts.
        same_host = _Host.of(parts) == _Host.of(_split(hop.url))
        if following.reach is Reach.PUBLIC and not (hop.from_label_studio or same_host):
            raise ImageAddressError(
                f"The image is redirected to {parts.hostname!r}, which is not fetched from.",
                remedy="Add the host to LIDIV_ALLOWED_IMAGE_HOSTS, or give the final address.",
            )
        return following

    def _hop(self, url: str, connection: Connection | None) -> _Hop:
        parts = _split(url)
        if parts.username or parts.password:
            raise ImageAddressError(
                "The image's address holds a user name or password.",
                remedy="Connect the source as a storage in Label Studio instead.",
            )
        home = _split(connection.url) if connection else None
        is_home = home is not None and (
            (home.scheme, _Host.of(home)) == (parts.scheme, _Host.of(parts))
        )
        inner = parts.path.removeprefix(home.path.rstrip("/")) if home else parts.path
        reach = Reach.PUBLIC
        if _Host.of(parts) in self._allowed or (is_home and connection and connection.configured):
            reach = Reach.ANYWHERE
        elif is_home:
            reach = Reach.NOT_LINK_LOCAL
        return _Hop(
            url=url,
            reach=reach,
            with_token=is_home and bool(_FILE_PATHS.match(inner)),
            from_label_studio=is_home,
        )

    @contextlib.contextmanager
    def _sent(
        self,
        method: str,
        hop: _Hop,
        seconds_left: Callable[[], float],
        *,
        headers: dict[str, str] | None = None,
        body: dict[str, str] | None = None,
    ) -> Iterator[requests.Response]:
        """Send one request; the answer's body is not read yet, and redirects are not followed."""
        host = _split(hop.url).hostname
        with open_session(
            hop.reach, ca_bundle=self._ca_bundle, seconds_left=seconds_left
        ) as session:
            try:
                left = seconds_left()
                if left <= 0:
                    raise TimeIsUpError
                answer = session.request(
                    method,
                    hop.url,
                    headers={"Accept-Encoding": "identity", **(headers or {})},
                    json=body,
                    stream=True,
                    timeout=(min(self._limits.connect_seconds, left), self._limits.read_seconds),
                )
                with answer:
                    yield answer
            except TimeIsUpError as error:
                raise ImageFetchError(
                    f"{host} took longer than {self._limits.total_seconds:g} s for the image.",
                    remedy="Is the image's source overloaded?",
                ) from error
            except RefusedAddressError as error:
                raise ImageAddressError(
                    f"The host {host!r} has an address in a private network.",
                    remedy="If that is where your images are, add the host to "
                    "LIDIV_ALLOWED_IMAGE_HOSTS.",
                ) from error
            # A host such as "a..b" is one of urllib3's own errors.
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise _unreachable(host, error) from error

    def _forget_access(self, hop: _Hop, connection: Connection | None) -> bool:
        """Drop an access token, which may have been revoked before its time."""
        if connection is None or not hop.with_token:
            return False
        token = connection.token.get_secret_value()
        known = self._access_tokens.find(connection.url, token) is not None
        self._access_tokens.forget(connection.url, token)
        return known

    def _authorization(
        self, hop: _Hop, connection: Connection | None, seconds_left: Callable[[], float]
    ) -> dict[str, str]:
        token = connection.token.get_secret_value() if connection else ""
        if connection is None or not hop.with_token or not token:
            return {}
        try:
            kind = jwt.decode(token, options={"verify_signature": False}).get("token_type")
        except jwt.InvalidTokenError:
            return {"Authorization": f"Token {token}"}
        if kind == "refresh":
            known = self._access_tokens.find(connection.url, token)
            token = known or self._exchange(connection, seconds_left)
        return {"Authorization": f"Bearer {token}"}

    def _exchange(self, connection: Connection, seconds_left: Callable[[], float]) -> str:
        """Turn a personal access token into an access token."""
        token = connection.token.get_secret_value()
        hop = self._hop(_join(connection.url, "/api/token/refresh/"), connection)
        with self._sent("POST", hop, seconds_left, body={"refresh": token}) as answer:
            try:
                content = answer.raw.read(_CHUNK, decode_content=True)
                access = json.loads(content)["access"] if answer.ok else None
            except (ValueError, KeyError, TypeError, urllib3.exceptions.HTTPError):
                access = None
        if not isinstance(access, str):
            raise _token_refused()
        self._access_tokens.keep(connection.url, token, access)
        return access

    def _body(self, answer: requests.Response, hop: _Hop) -> bytes:
        host = _split(hop.url).hostname
        if hop.from_label_studio and answer.status_code in (401, 403):
            raise _token_refused()
        if not answer.ok:
            raise ImageFetchError(
                f"{host} answers {answer.status_code} {answer.reason} for the image.",
                remedy="Does the image open in Label Studio?",
            )
        pieces: list[bytes] = []
        size = 0
        try:
            for piece in answer.iter_content(_CHUNK):
                size += len(piece)
                if size > self._limits.max_bytes:
                    raise BadImageError(
                        f"The image's file is larger than {self._limits.max_bytes:,} bytes.",
                        remedy="Scale the image down, or raise LIDIV_MAX_IMAGE_BYTES.",
                    )
                pieces.append(piece)
        except requests.RequestException as error:
            raise _unreachable(host, error) from error
        return b"".join(pieces)


def _split(url: str) -> SplitResult:
    try:
        if any(ord(character) < 32 or ord(character) == 127 for character in url):
            raise ValueError("control characters")
        parts = urlsplit(url)
        _ = parts.port  # parsed only now, and possibly no number
        if _NO_HOST.search(parts.netloc):
            raise ValueError("characters that no host has")
    except ValueError as error:
        raise ImageAddressError(
            f"The image's address {_shown(url)} is malformed.",
            remedy="Correct it in the task's data.",
        ) from error
    return parts


def _join(base: str, path: str) -> str:
    parts = _split(base)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")) + path


def _required(connection: Connection | None, address: str) -> Connection:
    if connection is None or _split(connection.url).scheme not in _DEFAULT_PORTS:
        raise ImageFetchError(
            f"The image {_shown(address)} is in Label Studio, whose address is not known.",
            remedy="Set LIDIV_LABEL_STUDIO_URL, or connect the backend to the project again.",
        )
    return connection


def _refuse_climbing(address: str) -> None:
    """Refuse `..` in the path and in what the query names, however often it is encoded."""
    parts = _split(address)
    candidates = [parts.path, *(value for _, value in parse_qsl(parts.query))]
    for candidate in candidates:
        plain = candidate
        while (decoded := unquote(plain)) != plain:
            plain = decoded
        if ".." in re.split(r"[/\\]", plain):
            raise ImageAddressError(
                f"The image's address {_shown(address)} leads out of its folder.",
                remedy="Correct it in the task's data.",
            )


def _shown(address: str) -> str:
    """Shorten an address for a message; its query may hold a signature."""
    plain = re.sub(r"//[^/@]*@", "//", address.partition("?")[0])
    return repr(plain if len(plain) <= 200 else plain[:200] + "...")


def _token_refused() -> ImageAccessError:
    return ImageAccessError(
        "Label Studio does not give out the image: the token is wrong, missing or expired.",
        remedy="Set LIDIV_LABEL_STUDIO_TOKEN to an access token of a user who can see the project; "
        "legacy tokens may be disabled in the organisation's settings.",
    )


def _unreachable(host: str | None, error: Exception) -> ImageFetchError:
    cause = error.args[0] if error.args else None
    slow = isinstance(error, requests.Timeout) or isinstance(
        cause, urllib3.exceptions.ReadTimeoutError
    )
    return ImageFetchError(
        f"{host} {'does not answer in time' if slow else 'cannot be reached'} for the image.",
        remedy="Can this machine reach it? Behind a proxy or in a container the address that "
        "Label Studio gives may not work; set LIDIV_LABEL_STUDIO_URL.",
    )
