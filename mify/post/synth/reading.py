"""Samples from files that others wrote: what is wrong with a line is counted, not fatal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.files import text_lines
from mify.post.synth.samples import FORMAT, Rejected, Sample, digest


def read_foreign(path: Path) -> tuple[list[Sample], list[Rejected]]:
    """The samples of a JSON-lines file, and the lines that are none.

    Raises:
        MifyError: the file cannot be read, or holds no line.
    """
    try:
        lines = text_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise MifyError(f"{path} cannot be read ({error})", "give a file of JSON lines") from None
    kept: list[Sample] = []
    rejected: list[Rejected] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            rejected.append(Rejected(Sample(f"{path.name}:{number}"), "no JSON", str(error)))
            continue
        if isinstance(value, dict):
            if value.get("format") == FORMAT:
                continue
            value = {key: item for key, item in value.items() if key not in ("reason", "evidence")}
            value.setdefault("id", digest("foreign", value))
        try:
            kept.append(Sample.from_dict(value))
        except ValueError as error:
            rejected.append(Rejected(Sample(f"{path.name}:{number}"), "no sample", str(error)))
    if not kept and not rejected:
        raise MifyError(f"{path} holds no line", "give a file of JSON lines")
    return kept, rejected
