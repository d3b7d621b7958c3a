from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from lidiv_backend.labelstudio import guarded_http as module
from lidiv_backend.labelstudio.guarded_http import (
    Reach,
    RefusedAddressError,
    is_link_local,
    is_public,
    open_session,
)
from tests.image_host import Answer, image_host


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - refused
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_addresses_of_private_networks_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_other_addresses_are_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_those_that_wrap_it(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    wrapped = (
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number),
    )
    assert {is_public(str(other)) for other in wrapped} == {is_public(str(address))}


def test_clouds_keep_their_secrets_at_link_local_addresses() -> None:
    assert is_link_local("169.254.169.254")
    assert is_link_local("fd00:ec2::254")
    assert not is_link_local("127.0.0.1")


def resolves_to(monkeypatch: pytest.MonkeyPatch, *rounds: list[str]) -> list[str]:
    """Let names resolve to other addresses each time; returns what is connected to."""
    answers = iter(rounds)
    connected: list[str] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in next(answers)
        ]

    def create_connection(address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(module.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(module, "create_connection", create_connection)
    return connected


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    connected = resolves_to(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    with open_session(Reach.PUBLIC) as session, pytest.raises(requests.ConnectionError):
        session.get(f"{scheme}://rebinding.test/")
    assert connected == ["93.184.216.34"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_one_private_address_among_several_is_enough_to_refuse(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    connected = resolves_to(monkeypatch, ["93.184.216.34", "10.0.0.1"])
    with open_session(Reach.PUBLIC) as session, pytest.raises(RefusedAddressError):
        session.get(f"{scheme}://mixed.test/")
    assert connected == []


def test_the_second_address_is_tried_when_the_first_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected = resolves_to(monkeypatch, ["93.184.216.34", "93.184.216.35"])
    with open_session(Reach.PUBLIC) as session, pytest.raises(requests.ConnectionError):
        session.get("http://two.test/")
    assert connected == ["93.184.216.34", "93.184.216.35"]


def test_a_name_that_does_not_resolve_is_a_connection_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(module.socket, "getaddrinfo", fail)
    with open_session(Reach.PUBLIC) as session, pytest.raises(requests.ConnectionError):
        session.get("http://nowhere.test/")


def test_reach_decides_about_the_loopback_address() -> None:
    with image_host() as host:
        host.routes["/"] = Answer(body=b"hello")
        for reach in (Reach.ANYWHERE, Reach.NOT_LINK_LOCAL):
            with open_session(reach) as session:
                assert session.get(host.url + "/").content == b"hello"
        with open_session(Reach.PUBLIC) as session, pytest.raises(RefusedAddressError):
            session.get(host.url + "/")
        assert len(host.seen) == 2


def test_link_local_addresses_are_refused_to_all_but_the_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected = resolves_to(monkeypatch, ["169.254.169.254"])
    with open_session(Reach.NOT_LINK_LOCAL) as session, pytest.raises(RefusedAddressError):
        session.get("http://metadata.test/")
    assert connected == []


def test_the_environments_proxies_and_passwords_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with image_host() as host:
        host.routes["/"] = Answer(body=b"direct")
        with open_session(Reach.NOT_LINK_LOCAL) as session:
            assert session.get(host.url + "/").content == b"direct"
