"""What is the same for everything that handles identifiers, from `prepare` to the service."""

from __future__ import annotations

#: Most characters of an identifier of a user or an item.
LONGEST_ID = 512
