"""Puts the parts together into one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from llmd4rec.io.files import atomic_file
from llmd4rec.report import sections
from llmd4rec.report.charts import esc
from llmd4rec.report.content import ReportContent

#: Nothing may be loaded or sent, whatever a title contains.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def write_report(path: Path | str, content: ReportContent) -> None:
    """Writes the report as one HTML file, atomically. Parts missing in `content` are left out.

    Args:
        path: where to; replaced if it exists.
        content: what to show.
    """
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(render(content), encoding="utf-8")


def render(content: ReportContent) -> str:
    """The report as HTML text."""
    parts = [
        sections.results(content),
        sections.origins(content),
        sections.plan(content),
        sections.learning(content),
        sections.sample_weights(content),
        sections.different_hits(content),
        sections.time_passes(content),
        sections.histories(content),
        sections.background(content),
    ]
    here = resources.files(__package__)
    style = (here / "style.css").read_text(encoding="utf-8")
    script = (here / "script.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{esc(content.title)} · llmd4rec report</title><style>{style}</style></head>\n"
        f"<body><main>{sections.opening(content)}\n{chr(10).join(part for part in parts if part)}\n</main>"
        f'<div id="tip" role="status" hidden></div><script>{script}</script></body></html>\n'
    )
