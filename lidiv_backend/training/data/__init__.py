"""Readers of training and evaluation data, all giving `lidiv_backend.records.ImageSet`.

A reader lists its images when it is made and reads them when they are asked for. It can be
pickled and forked: no file stays open between reads.
"""

from lidiv_backend.training.data.shards import ShardSet
from lidiv_backend.training.data.spec import (
    ImageSetSpec,
    hash_split,
    known_image_sets,
    open_image_set,
    register_image_set,
)

__all__ = [
    "ImageSetSpec",
    "ShardSet",
    "hash_split",
    "known_image_sets",
    "open_image_set",
    "register_image_set",
]
