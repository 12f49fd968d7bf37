"""The explorer: one page, plain files, nothing to build and nothing to fetch from elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/explorer/explorer.css": ("explorer.css", "text/css; charset=utf-8"),
    "/explorer/explorer.js": ("explorer.js", "text/javascript; charset=utf-8"),
    "/explorer/icon.svg": ("icon.svg", "image/svg+xml"),
}


@dataclass(frozen=True)
class Page:
    """A file as it is sent.

    Attributes:
        content: its bytes.
        type: its media type.
        tag: changes with its content.
    """

    content: bytes
    type: str
    tag: str


def pages() -> dict[str, Page]:
    """All files by the path they are served at."""
    found = {}
    for path, (name, kind) in _FILES.items():
        content = resources.files(__package__).joinpath(name).read_bytes()
        found[path] = Page(content, kind, f'"{hashlib.sha256(content).hexdigest()[:24]}"')
    return found
