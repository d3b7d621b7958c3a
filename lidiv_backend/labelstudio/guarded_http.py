"""HTTP to addresses that a task names, without being led into the private network.

Task data is written by whoever imports tasks, so an image address is a stranger's wish. A host name
is resolved here once; every address is checked before a byte is sent, and the connection goes to
the address that was checked, so that a name which resolves differently the second time gains
nothing. Redirects are left to the caller, who decides anew about each hop. So is how long all of it
may take: timeouts of sockets count from each piece that is received, and a byte now and then would
hold a thread for hours.
"""

from __future__ import annotations

import enum
import functools
import io
import ipaddress
import math
import socket
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class RefusedAddressError(Exception):
    """A host name resolves to an address that may not be reached.

    No `OSError`: urllib3 would take that for a broken connection, and try again.
    """


class TimeIsUpError(Exception):
    """A request has taken as long as all of it may.

    No `OSError`, either: whoever asked knows best what to say about it.
    """


class Reach(enum.Enum):
    """Which addresses a host name may resolve to."""

    #: The operator named the host: any.
    ANYWHERE = enum.auto()
    #: A Label Studio that named itself: the open internet and private networks, but not the
    #: link-local addresses where clouds keep their secrets.
    NOT_LINK_LOCAL = enum.auto()
    #: The open internet.
    PUBLIC = enum.auto()


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the open internet.

    Parameters
    ----------
    address
        IPv4 or IPv6, as text.

    Returns
    -------
    bool
        False for private, loopback, link-local, reserved, multicast and unspecified addresses,
        also where an IPv6 address wraps such an IPv4 address.
    """
    parsed = _unwrapped(address)
    return parsed.is_global and not parsed.is_multicast


def is_link_local(address: str) -> bool:
    """Tell whether an IP address is link-local, or one at which a cloud describes its machines."""
    parsed = _unwrapped(address)
    return parsed.is_link_local or str(parsed) == "fd00:ec2::254"


def _unwrapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return parsed.ipv4_mapped
        if parsed.sixtofour is not None:
            return parsed.sixtofour
        if parsed in _NAT64:
            return ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed


class _TimedReader(io.RawIOBase):
    """Reads from a socket as long as there is time left."""

    def __init__(
        self, raw: io.RawIOBase, connected: socket.socket, seconds_left: Callable[[], float]
    ) -> None:
        self._raw = raw
        self._socket = connected
        self._seconds = connected.gettimeout()
        self._seconds_left = seconds_left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._seconds_left()
        if left <= 0:
            raise TimeIsUpError
        if left < math.inf:
            self._socket.settimeout(left if self._seconds is None else min(left, self._seconds))
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            if self._seconds_left() <= 0:
                raise TimeIsUpError from None
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(
        self, sock: socket.socket, *args: Any, seconds_left: Callable[[], float], **kwargs: Any
    ) -> None:
        super().__init__(sock, *args, **kwargs)
        # Headers are read from here as well as the body.
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, seconds_left))


class _TimedConnection(HTTPConnection):
    """Gives up when there is no time left, also in the middle of an answer."""

    def __init__(self, *args: Any, seconds_left: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds_left = seconds_left
        self.response_class = functools.partial(  # type: ignore[assignment]  # it is only called
            _TimedResponse, seconds_left=seconds_left
        )


class _CheckedConnection(_TimedConnection):
    """Resolves, checks, and connects to what was checked."""

    @staticmethod
    def permits(address: str) -> bool:
        raise NotImplementedError

    def _new_conn(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NameResolutionError(self.host, self, socket.gaierror(str(error))) from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not all(type(self).permits(address) for address in addresses):
            raise RefusedAddressError(self.host)
        failure: OSError | None = None
        for address in addresses:
            if self.seconds_left() <= 0:
                raise TimeIsUpError
            try:
                return create_connection(
                    (address, self.port),
                    self.timeout,
                    source_address=self.source_address,
                    socket_options=self.socket_options,
                )
            except OSError as error:
                failure = error
        raise NewConnectionError(self, f"cannot connect to {self.host}: {failure}") from failure


class _Public(_CheckedConnection):
    permits = staticmethod(is_public)


class _NotLinkLocal(_CheckedConnection):
    @staticmethod
    def permits(address: str) -> bool:
        return not is_link_local(address)


class _TimedTls(_TimedConnection, HTTPSConnection):
    pass


class _PublicTls(_Public, HTTPSConnection):
    pass


class _NotLinkLocalTls(_NotLinkLocal, HTTPSConnection):
    pass


class _TimedPool(HTTPConnectionPool):
    ConnectionCls = _TimedConnection


class _TimedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _TimedTls


class _PublicPool(HTTPConnectionPool):
    ConnectionCls = _Public


class _PublicTlsPool(HTTPSConnectionPool):
    ConnectionCls = _PublicTls


class _NotLinkLocalPool(HTTPConnectionPool):
    ConnectionCls = _NotLinkLocal


class _NotLinkLocalTlsPool(HTTPSConnectionPool):
    ConnectionCls = _NotLinkLocalTls


_POOLS: dict[Reach, dict[str, type[HTTPConnectionPool]]] = {
    Reach.ANYWHERE: {"http": _TimedPool, "https": _TimedTlsPool},
    Reach.PUBLIC: {"http": _PublicPool, "https": _PublicTlsPool},
    Reach.NOT_LINK_LOCAL: {"http": _NotLinkLocalPool, "https": _NotLinkLocalTlsPool},
}


class _Adapter(HTTPAdapter):
    def __init__(self, reach: Reach, seconds_left: Callable[[], float]) -> None:
        # What a pool does not know it passes on to its connections.
        self._pools = {
            scheme: functools.partial(pool, seconds_left=seconds_left)
            for scheme, pool in _POOLS[reach].items()
        }
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools


class _Session(requests.Session):
    """Leaves redirects alone: requests would parse their target and read their whole body."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def open_session(
    reach: Reach,
    *,
    ca_bundle: str | None = None,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> requests.Session:
    """Make a session that reaches only some addresses.

    Parameters
    ----------
    reach
        Which.
    ca_bundle
        File of the certificates to trust; None for the usual ones.
    seconds_left
        How long requests and the reading of their answers may still take.

    Returns
    -------
    requests.Session
        It follows no redirects, and takes neither proxies nor passwords from the environment: a
        proxy would resolve names itself. Raises `RefusedAddressError` where an address is refused,
        and `TimeIsUpError` where no time is left.
    """
    session = _Session()
    session.trust_env = False
    session.verify = ca_bundle or True
    adapter = _Adapter(reach, seconds_left)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session
