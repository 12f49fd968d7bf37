"""Installs this project into .venv: with uv, which takes seconds, or with pip where uv cannot be had.

Run by the Makefile with .venv's own Python:

    .venv/bin/python supply/install.py EXTRAS

uv does not read pip's configuration. What that says of where packages come from is handed on, so that a mirror, a proxy
or a folder of wheels serves both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
#: Settings of pip → what uv calls them, and what stands between several values there.
SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "no-index": ("UV_NO_INDEX", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "constraint": ("UV_CONSTRAINT", " "),
}


def main(extras: str) -> int:
    """Installs the project as it stands in this checkout, with the releases that it is tested with."""
    what = ["-e", f"{ROOT}[{extras}]"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    tool, release = Path(sys.executable).with_name("uv"), ["-c", str(ROOT / "supply" / "tools.txt")]
    if tool.is_file() or _quiet([*PIP, "install", "--quiet", "--no-compile", *release, "uv"]):
        uv = [str(tool), "pip", "install", "--quiet", "--python", sys.executable, *constraints, *what]
        if not subprocess.run(uv, env=os.environ | for_uv(pip_settings()), check=False).returncode:
            return 0
    print("Installing with pip, which takes a few minutes", file=sys.stderr)
    # Byte code is compiled where it is first imported: most of what is installed never is.
    return subprocess.run([*PIP, "install", "--quiet", "--no-compile", *constraints, *what], check=False).returncode


def pip_settings() -> dict[str, list[str]]:
    """What pip's files and environment say, by setting; those of commands other than `install` do not count."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False).stdout
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "install", ":env:"):
            found.setdefault(name, []).extend(value.strip("'\"").replace("\\n", " ").split())
    return found


def for_uv(settings: dict[str, list[str]]) -> dict[str, str]:
    """The environment by which uv looks where pip does, unless that has been said to uv itself."""
    found = {}
    for name, (variable, between) in SETTINGS.items():
        values = list(dict.fromkeys(settings.get(name, [])))
        if values and variable not in os.environ:
            found[variable] = between.join(values)
    # pip takes the best release of all indexes, uv that of the first index which has any.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match"} | found


def _quiet(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: .venv/bin/python supply/install.py EXTRAS, such as train,serve")
    sys.exit(main(sys.argv[1]))
