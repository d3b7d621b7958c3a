import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def pool() -> Path:
    """The folder with train/, eval/ and domains/."""
    if "LIDIV_DATA" not in os.environ:
        pytest.skip("LIDIV_DATA does not name the folder with train/, eval/ and domains/")
    return Path(os.environ["LIDIV_DATA"])


@pytest.fixture
def rgb() -> NDArray[np.uint8]:
    """A photo of 12 rows and 16 columns."""
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


@pytest.fixture
def square() -> NDArray[np.bool_]:
    """A mask of the photo's size."""
    mask = np.zeros((12, 16), dtype=bool)
    mask[2:7, 3:9] = True
    return mask
