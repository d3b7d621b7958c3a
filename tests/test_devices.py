"""Devices, and what they are called."""

from __future__ import annotations

import pytest
import torch

from lidiv_backend.devices import choose_device, machine
from lidiv_backend.errors import BadRequestError


def test_a_device_that_is_not_there_is_told() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(BadRequestError, match="invented"):
        choose_device("invented")


def test_the_machine_is_named_with_all_that_times_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    name, *others = machine().rsplit(", ", 2)
    assert name
    assert others == ["7 threads", f"torch {torch.__version__}"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert machine() == f"{name}, Some GPU, 7 threads, torch {torch.__version__}"
