"""The explorer: a page of plain files, with nothing to build and nothing to load from elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Page:
    """A file of the explorer.

    Attributes:
        content: its bytes.
        type: its media type.
        tag: its ETag.
    """

    content: bytes
    type: str
    tag: str


def pages() -> dict[str, Page]:
    """All files, by the path at which they are served."""
    found = {}
    for file in resources.files(__package__).iterdir():
        kind = _TYPES.get(PurePath(file.name).suffix)
        if kind is not None:
            content = file.read_bytes()
            path = "/" if file.name == "index.html" else f"/explorer/{file.name}"
            found[path] = Page(content, kind, f'"{hashlib.sha256(content).hexdigest()[:24]}"')
    return found
