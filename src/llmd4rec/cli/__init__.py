"""The command line: parse, call, print. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from llmd4rec.cli import (
    baselines,
    compare,
    data,
    evaluate,
    export,
    prepare,
    recommend,
    refit,
    report,
    serve,
    train,
    update,
)
from llmd4rec.errors import LLMD4RecError
from llmd4rec.extras import explanation
from llmd4rec.startup import set_environment

#: Options that were once called otherwise.
_RENAMED_OPTIONS = {
    "--model": "--stage (undistilled, teacher-1, llm, distilled, served, ...)",
    "--seen": "--filter-seen or --no-filter-seen",
}


class _Commands(TyperGroup):
    """Errors meant for the user become a message and exit code 2; an interruption says how to go on.

    Codes: 0 done; 2 a person must do something first; 128 and the signal's number (130 Ctrl-C, 143 SIGTERM, like 137 of
    a process that was killed): stopped, and the same command goes on.

    This stands inside typer's own handling, which would turn an interruption into a silent exit.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except LLMD4RecError as error:
            _fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            missing = explanation(error)
            if missing is None:
                raise
            _fail(str(missing), missing.exit_code)
        except KeyboardInterrupt as interruption:
            number = getattr(interruption, "signal_number", 2)
            if getattr(interruption, "saved", False):
                _fail(
                    "stopped; a checkpoint was written.\n  Run the same command again to go on from here.",
                    128 + number,
                    label="",
                )
            _fail("stopped.\n  Run the same command again; a training goes on from its checkpoint.", 128 + number, "")
        except BrokenPipeError:
            # The reader of a pipe (head, less) has gone; a second message at exit would only confuse.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _fail(f"the disk is full: {error.filename or ''}\n  Free some space, then run the same command again.", 2)
        except Exception as error:  # an option that there is not; click's class for that is private to typer
            option = getattr(error, "option_name", None)
            new = _RENAMED_OPTIONS.get(option or "", "")
            there = _options_of(error)
            meant = any(name.startswith(f"{option}") for name in there)  # such as --models, to which --model is near
            if new and not meant and any(name.startswith(new.split()[0]) for name in there):
                error.message = f"{option} is now {new}"  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    name="llmd4rec",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Sequential recommenders that cost no more to serve than SASRec, and learn from stronger models.\n\n"
        "A first run, from a log to recommendations:\n\n"
        "  llmd4rec prepare --interactions log.csv --items items.csv --out data/mine\n\n"
        "  llmd4rec train --data data/mine --run runs/first\n\n"
        '  llmd4rec recommend runs/first --history "item1,item2" -k 10'
    ),
)
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("refit")(refit.refit)
app.command("update")(update.update)
app.command("evaluate")(evaluate.evaluate)
app.command("baselines")(baselines.baselines)
app.command("recommend")(recommend.recommend)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.add_typer(data.app, name="data")


def _options_of(error: Exception) -> list[str]:
    """The options of the command that refused one."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    return [name for parameter in getattr(command, "params", ()) for name in parameter.opts]


def _version(value: bool) -> None:
    if value:
        from llmd4rec import __version__

        print(f"llmd4rec {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None: ...


def main() -> None:
    """Entry point."""
    set_environment()
    for stream in (sys.stdout, sys.stderr):  # as log.never_fail, which is slow to import
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in ("replace", "backslashreplace"):
            stream.reconfigure(errors="replace")
    logging.getLogger("llmd4rec").propagate = False  # messages are ours to show, whatever a library does to the root
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    app()


class _Terminated(KeyboardInterrupt):
    signal_number = signal.SIGTERM


def _terminate(_number: int, _frame: object) -> NoReturn:
    """What Ctrl-C does, so that nothing half-done is left behind; a training stops in its own way."""
    raise _Terminated


def _fail(message: str, code: int, label: str = "error: ") -> NoReturn:
    print(f"{label}{message}", file=sys.stderr)
    sys.exit(code)
