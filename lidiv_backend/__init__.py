"""Interactive image segmentation with latent diversity, as a Label Studio backend."""

from lidiv_backend.clicks import Click
from lidiv_backend.predictor import Predictor, Proposal

__all__ = ["Click", "Predictor", "Proposal"]
