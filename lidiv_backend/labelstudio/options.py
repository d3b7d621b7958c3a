"""What a project asks for beyond clicks, by its ``extra_params`` in Label Studio.

Three things are off unless a project wants them, because each gives a click or a tag a meaning that
annotators have to know of: smart rectangles, refining a copy of an accepted region, and all
alternatives at once under helper labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lidiv_backend.errors import BadRequestError

#: Helper labels of an overlay where none are chosen.
HELPER_LABELS = ("alternative 2", "alternative 3", "alternative 4")

_Label = Annotated[str, Field(min_length=1, max_length=200)]


class ExtraParamsError(BadRequestError):
    """An extra parameter is unknown, or has a wrong value."""

    kind = "extra parameters"


class ProjectOptions(BaseModel):
    """What a project asks for.

    Parameters
    ----------
    rectangles
        A smart rectangle asks for the object inside it.
    refine_accepted
        A first click inside an accepted region of the same label refines a copy of it.
    overlay
        Helper labels: every answer shows all proposals, the alternatives under these labels.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    rectangles: bool = False
    refine_accepted: bool = False
    overlay: Annotated[tuple[_Label, ...], Field(strict=False, max_length=20)] = ()

    def as_extra_params(self) -> dict[str, Any]:
        """Write them as Label Studio keeps them; only what differs from the defaults."""
        return self.model_dump(mode="json", exclude_defaults=True)


def read_options(extra_params: Mapping[str, Any]) -> tuple[ProjectOptions, tuple[str, ...]]:
    """Read a project's ``extra_params``.

    Parameters
    ----------
    extra_params
        As ``/setup`` brought them.

    Returns
    -------
    options : ProjectOptions
        What can be understood of them; the defaults for the rest.
    problems : tuple of str
        A sentence for each parameter that is unknown or has a wrong value.
    """
    known: dict[str, Any] = {}
    problems = []
    for name, value in extra_params.items():
        if name not in ProjectOptions.model_fields:
            names = ", ".join(ProjectOptions.model_fields)
            shown = str(name)[:80]
            problems.append(f"The extra parameter {shown!r} is unknown; known are {names}.")
            continue
        try:
            ProjectOptions.model_validate({name: value})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            problems.append(f"The extra parameter {name!r} cannot be used: {first['msg']}.")
        else:
            known[name] = value
    return ProjectOptions.model_validate(known), tuple(problems)
