"""Devices, and what they are called."""

from __future__ import annotations

import platform
import subprocess
import sys

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands memory back")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept_for_the_next_tensor(kept: bool) -> None:
    """Counted in the pages, huge ones perhaps, that the system provides for 20 tensors of 64 MB."""
    counted = """
import resource, sys, torch
from lidiv_backend.devices import keep_freed_memory

def provided():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "True":
    keep_freed_memory()
for _ in range(20):
    torch.ones(2**24)
before = provided()
for _ in range(20):
    torch.ones(2**24)
print(provided() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", counted, str(kept)], check=True, capture_output=True, text=True
    )
    assert (int(done.stdout) < 300) == kept
