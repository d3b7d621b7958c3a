from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.errors import DataError
from lidiv_backend.learning.files import ASIDE
from lidiv_backend.learning.vault import Vault
from tests import tiny


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def test_what_is_put_in_comes_out(vault: Vault) -> None:
    rgb = tiny.photo(30, 41)
    mask = rgb[..., 0] > 100
    image_digest, mask_digest = vault.put_image(rgb), vault.put_mask(mask)
    np.testing.assert_array_equal(vault.image(image_digest), rgb)
    np.testing.assert_array_equal(vault.mask(mask_digest), mask)
    assert vault.mask(mask_digest).dtype == np.bool_
    assert vault.image_size(image_digest) == (30, 41)
    assert vault.has_image(image_digest)


def test_the_same_content_is_kept_once(vault: Vault, tmp_path: Path) -> None:
    rgb = tiny.photo(8, 8)
    assert vault.put_image(rgb) == vault.put_image(rgb.copy())
    assert vault.put_image(tiny.photo(8, 8, seed=1)) != vault.put_image(rgb)
    assert len(list((tmp_path / "vault").rglob("*.png"))) == 2
    assert not list((tmp_path / "vault").rglob(f"{ASIDE}*"))


def test_masks_of_one_content_and_other_shapes_are_different(vault: Vault) -> None:
    ones = np.ones((4, 6), dtype=bool)
    assert vault.put_mask(ones) != vault.put_mask(ones.reshape(6, 4))


def test_damage_is_told(vault: Vault, tmp_path: Path) -> None:
    digest = vault.put_image(tiny.photo(8, 8))
    other = vault.put_image(tiny.photo(8, 8, seed=1))
    (path,) = (tmp_path / "vault").rglob(f"{digest}.png")
    (swapped,) = (tmp_path / "vault").rglob(f"{other}.png")
    path.write_bytes(swapped.read_bytes())
    with pytest.raises(DataError, match="damaged"):
        vault.image(digest)
    path.unlink()
    for read in (vault.image, vault.mask, vault.image_size):
        with pytest.raises(DataError):
            read(digest)
    with pytest.raises(DataError):
        vault.image("../../etc/passwd")


@pytest.mark.parametrize("damage", [b"", b"no picture", None])
def test_what_is_damaged_is_not_taken_for_present(
    vault: Vault, tmp_path: Path, damage: bytes | None
) -> None:
    rgb = tiny.photo(8, 8)
    digest = vault.put_image(rgb)
    (path,) = (tmp_path / "vault").rglob(f"{digest}.png")
    # Half of the file, as a machine without power leaves it.
    path.write_bytes(path.read_bytes()[:60] if damage is None else damage)
    assert not vault.has_image(digest)
    assert vault.put_image(rgb) == digest
    assert vault.has_image(digest)
    np.testing.assert_array_equal(vault.image(digest), rgb)


def test_a_damaged_mask_is_written_again(vault: Vault, tmp_path: Path) -> None:
    mask = tiny.photo(8, 8)[..., 0] > 100
    digest = vault.put_mask(mask)
    (path,) = (tmp_path / "vault").rglob(f"{digest}.png")
    path.write_bytes(b"")
    vault.put_mask(mask)
    np.testing.assert_array_equal(vault.mask(digest), mask)
