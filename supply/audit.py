"""Asks the advisory database about every pinned package; exits with 0 only if all of them were looked up and are clean.

    python supply/audit.py constraints.txt

Exit status: 0 nothing is known against any of them; 1 something is; 2 some could not be looked up. The tool beneath
calls packages that it could not look up "skipped" and says that nothing was found, which is true and no answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit status and what to say.

    Args:
        dependencies: as pip-audit lists them: `name`, and `version` with `vulns`, or a `skip_reason`.
    """
    lines, known, skipped = [], 0, [each for each in dependencies if "skip_reason" in each]
    for each in dependencies:
        for advisory in each.get("vulns", []):
            known += 1
            fixed = ", ".join(advisory.get("fix_versions", [])) or "no version yet"
            lines.append(f"{each['name']} {each['version']}: {advisory['id']}, fixed in {fixed}")
    if known:
        lines.append(f"{known} advisories. Raise the versions in constraints.txt, then: make lock test")
    if skipped:
        lines.append(
            f"NOT AUDITED: {len(skipped)} of {len(dependencies)} packages could not be looked up, "
            f"for example {skipped[0]['name']} ({skipped[0]['skip_reason']})"
        )
    if not dependencies:
        lines.append("NOT AUDITED: no package was named")
    if not lines:
        lines.append(f"{len(dependencies)} packages looked up, nothing is known against them")
    return 1 if known else 2 if skipped or not dependencies else 0, lines


def main(requirements: str, python: str = sys.executable) -> int:
    """Looks the packages of a requirements file up, with the pip-audit of `python`, and prints the verdict."""
    command = [python, "-m", "pip_audit", "-r", requirements, "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "20"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        print(f"NOT AUDITED: the advisory database cannot be reached: {why}")
        return 2
    status, lines = verdict(dependencies)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
