"""Errors that a user can do something about.

Every message says what happened and what to do. Anything that is not a `LidivError` is a defect.
"""


class LidivError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    message
        What happened, in words that a user understands.
    remedy
        What to do about it; shown behind the message.
    """

    #: HTTP status with which the server answers this error.
    status = 500
    #: Short name of the kind, for logs and the list of recent failures.
    kind = "error"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class BadRequestError(LidivError):
    """What was sent cannot be understood or used."""

    status = 400
    kind = "bad request"


class BadClickError(BadRequestError):
    """A click is outside the image, not finite, or missing."""

    kind = "bad click"


class BadImageError(LidivError):
    """The image is unreadable, truncated or over the pixel limit."""

    status = 422
    kind = "bad image"


class WeightsError(LidivError):
    """Weights are missing, damaged or made for something else."""

    status = 503
    kind = "weights"


class DataError(LidivError):
    """A data set is not what it claims to be, or one of its records is unusable."""

    status = 422
    kind = "data"


class TrainingError(LidivError):
    """A training run cannot go on."""

    kind = "training"
