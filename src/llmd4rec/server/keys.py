"""API keys and what each may do."""

from __future__ import annotations

from dataclasses import dataclass

from llmd4rec.errors import LLMD4RecError

#: What a key can be allowed to do: ask, change what is served, read the metrics.
SCOPES = ("read", "change", "metrics")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key.

    Attributes:
        secret: what clients send.
        scopes: what it may do.
    """

    secret: bytes
    scopes: frozenset[str]

    def __repr__(self) -> str:
        return f"ApiKey({', '.join(sorted(self.scopes))})"


def parse_key(line: str) -> ApiKey:
    """Reads `KEY`, which may do everything, or `KEY SCOPE,SCOPE`.

    Raises:
        LLMD4RecError: the key is too short or cannot be a header, or there is no such scope.
    """
    secret, _, listed = line.strip().partition(" ")
    if len(secret) < 16 or not secret.isascii() or not secret.isprintable():
        raise LLMD4RecError(
            "an API key is shorter than 16 characters or holds signs beyond ASCII",
            "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    scopes = [name for name in listed.replace(",", " ").split() if name]
    wrong = [name for name in scopes if name not in SCOPES]
    if wrong:  # neither is shown: a key with a space in it would be
        raise LLMD4RecError(
            "after an API key stands something that is no scope",
            f"Write one key a line, then its scopes with commas between them: {', '.join(SCOPES)}; none is all.",
        )
    return ApiKey(secret.encode(), frozenset(scopes or SCOPES))
