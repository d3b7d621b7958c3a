"""Bodies that a Label Studio 1.23.2 really sent; tokens are placeholders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
#: All recorded requests to a backend.
BACKEND = tuple(sorted(path.stem for path in FOLDER.glob("backend_*.json")))
#: All recorded interactions of a person in a browser.
BROWSER = tuple(sorted(path.stem for path in FOLDER.glob("browser_*.json")))


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


#: Those of them with a body.
POSTED = tuple(name for name in BACKEND if load(name)["body"] is not None)


def label_config(kind: str) -> str:
    """The recorded label config that goes with a recorded browser session."""
    source = {
        "brushlabels": "backend_predict_interactive",
        "labels": "backend_predict_interactive_rectangle",
    }[kind]
    return str(load(source)["body"]["label_config"])
