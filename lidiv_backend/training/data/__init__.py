"""Readers of training and evaluation data, all giving `lidiv_backend.records.ImageSet`.

A reader lists its images when it is made and reads them when they are asked for. It can be
pickled and forked: no file stays open between reads.
"""

from lidiv_backend.training.data.coco import CocoSet
from lidiv_backend.training.data.folder import FolderSet, ImagePair, PairSet
from lidiv_backend.training.data.labels import MaskConvention, objects_from_labels
from lidiv_backend.training.data.labelstudio import LabelStudioSet
from lidiv_backend.training.data.merged import MergedSet, with_merged
from lidiv_backend.training.data.shards import MaskEntry, ShardSet
from lidiv_backend.training.data.spec import (
    ImageSetSpec,
    hash_split,
    known_image_sets,
    open_image_set,
    register_image_set,
    take_part,
)
from lidiv_backend.training.data.voc import SbdSet, VocSet

__all__ = [
    "CocoSet",
    "FolderSet",
    "ImagePair",
    "ImageSetSpec",
    "LabelStudioSet",
    "MaskConvention",
    "MaskEntry",
    "MergedSet",
    "PairSet",
    "SbdSet",
    "ShardSet",
    "VocSet",
    "hash_split",
    "known_image_sets",
    "objects_from_labels",
    "open_image_set",
    "register_image_set",
    "take_part",
    "with_merged",
]
