"""`llmd4rec serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmd4rec.cli.evaluate import STAGES
from llmd4rec.cli.opening import TrustCode, open_recommender

if TYPE_CHECKING:
    from llmd4rec.inference.recommender import Recommender

KEY = "LLMD4REC_API_KEY"


def serve(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder made by `llmd4rec export`, or the hub id of one; or a run folder, for a first look."
        ),
    ],
    stage: Annotated[
        str, typer.Option(metavar="ID", help=f"Which trained model of a run or an export: {STAGES}.")
    ] = "served",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    models: Annotated[
        Path | None, typer.Option(help="Folder of exports that may be loaded by name while serving \\[default: none].")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help=f"File of API keys, one a line, each alone or followed by its scopes: read, change, metrics. Read "
            f"again on SIGHUP. {KEY} in the environment is another key, with all scopes."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name that requests may name; repeat it for more.")
    ] = None,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes",
            help="Items may be added and removed, and models changed, without a key; only where nobody else than this "
            "machine's own users can send requests, also not through a proxy.",
        ),
    ] = False,
    index: Annotated[
        Literal["auto", "exact", "approximate"],
        typer.Option(help="Whether every item is scored or an index is asked; auto: an index on large catalogues."),
    ] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the encoder.")] = 1,
    max_k: Annotated[int, typer.Option(min=1, help="Most items asked for at once.")] = 200,
    max_history: Annotated[int, typer.Option(min=1, help="Most items of a history.")] = 1000,
    max_batch: Annotated[int, typer.Option(min=1, help="Most histories of a batch request.")] = 256,
    max_body: Annotated[int, typer.Option(min=1024, help="Most bytes of a request's body.")] = 1 << 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests answered at once; more get 503.")] = 512,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a request may take.")] = 10.0,
    keep_alive: Annotated[float, typer.Option(min=0.1, help="Seconds an idle connection is kept.")] = 75.0,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds between a signal to stop and the end, with /readyz saying 503.")
    ] = 0.0,
    stop_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after that in which requests in progress are finished.")
    ] = 20.0,
    access_log: Annotated[bool, typer.Option(help="A line on standard error for every request.")] = True,
    trust_code: TrustCode = False,
) -> None:
    """Serve an export over HTTP, with the explorer, a page to try it, at its root.

    Listens on this machine only unless told otherwise. Logs are JSON lines without histories or identifiers.

    Example:

      llmd4rec serve exports/first --port 8000
    """
    from llmd4rec.errors import LLMD4RecError

    # Before NumPy is there: answers are computed on so many cores, another one is for HTTP.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    from llmd4rec.server.server import serve as run
    from llmd4rec.server.settings import ServiceSettings

    if models is not None and not models.is_dir():
        raise LLMD4RecError(f"--models {models} is no folder", "Name the folder that holds exports.")
    settings = ServiceSettings(
        host=host,
        models=models,
        api_keys=read_keys(api_keys, os.environ.get(KEY, "")),
        allow_changes=allow_changes,
        allowed_hosts=tuple(allow_host or ()),
        max_k=max_k,
        max_history=max_history,
        max_batch=max_batch,
        max_body=max_body,
        concurrency=concurrency,
        timeout=timeout,
        keep_alive=keep_alive,
        drain=drain,
        stop_timeout=stop_timeout,
        access_log=access_log,
    )

    if allow_changes and not settings.local and not settings.api_keys:
        raise LLMD4RecError(
            f"--allow-changes would let everybody who reaches {host} change what is served",
            f"Set {KEY} or give --api-keys instead, or listen on 127.0.0.1.",
        )

    def load(path: Path) -> Recommender:
        chosen = stage if path == source else "served"  # others are loaded by name while serving
        return open_recommender(path, chosen, trust_code, threads=threads, index=index)

    def say(url: str, recommender: Any) -> None:
        info = recommender.info
        print(f"{info.name}: {info.model}, {info.stage}, {info.items:,} items", flush=True)
        if not settings.changes_allowed:
            who = "this machine" if settings.local else "anyone who reaches this machine"
            print(f"{who} may ask; changes are off. Set {KEY} to ask for a key and allow them.", flush=True)
        print(f"{url}  (Ctrl-C stops)", flush=True)

    def reread() -> tuple[str, ...]:
        return read_keys(api_keys, os.environ.get(KEY, ""))

    run(source, settings, port=port, load=load, on_start=say, read_keys=reread if api_keys is not None else None)


def read_keys(file: Path | None, variable: str) -> tuple[str, ...]:
    """The API keys of a file, one a line with its scopes, and of the environment.

    Raises:
        LLMD4RecError: the file cannot be read or holds none, or a key is too short or has an unknown scope.
    """
    from llmd4rec.errors import LLMD4RecError
    from llmd4rec.server.keys import parse_key

    keys = {KEY: variable.strip()} if variable.strip() else {}
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise LLMD4RecError(f"--api-keys {file} cannot be read", "Name a text file with one key a line.") from error
        where = f"--api-keys {file}, line"
        found = {f"{where} {n}": line for n, line in enumerate(lines, 1) if line and not line.startswith("#")}
        if not found:
            raise LLMD4RecError(f"--api-keys {file} holds no key", "Write one key a line.")
        keys |= found
    for place, key in keys.items():
        try:
            parse_key(key)
        except LLMD4RecError as error:
            raise LLMD4RecError(f"{place}: {error.what}", error.remedy) from error
    return tuple(keys.values())
