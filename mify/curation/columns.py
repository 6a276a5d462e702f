"""Columns of public data sets of code: what they are called, and how languages and licenses are written in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mify.curation.languages import UNKNOWN
from mify.curation.licenses import named_license

# Names that public code data sets give these columns, ours first.
COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "code"),
    "path": ("path", "max_stars_repo_path", "file_path", "filename"),
    "repo": ("repo", "repo_name", "repository", "max_stars_repo_name"),
    "license": ("license", "license_type", "licenses", "detected_licenses", "max_stars_repo_licenses"),
    "language": ("language", "lang", "programming_language"),
    "domain": ("domain",),
    "source": ("source",),
}
_LANGUAGE_ALIASES = {
    "c++": "cpp", "c#": "csharp", "f#": "fsharp", "objective-c++": "objective-c", "jupyter notebook": "jupyter",
    "rst": "restructuredtext", "bash": "shell", "sh": "shell", "ts": "typescript", "js": "javascript", "py": "python",
    "plain text": "text", "plaintext": "text", "txt": "text", "md": "markdown", "python3": "python",
}  # fmt: skip


def column(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column by any of its names, None where it is absent or empty."""
    return next((record[other] for other in COLUMNS[name] if record.get(other) not in (None, "", [])), None)


def written_language(value: Any) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    name = value.strip().lower()
    return _LANGUAGE_ALIASES.get(name, name)


def written_license(value: Any) -> str:
    """A license column as an expression; of a list, all must be taken."""
    values = value if isinstance(value, list) else [value]
    names = [item for item in values if isinstance(item, str)]
    found = sorted({named_license(name) for name in names})
    if not found or UNKNOWN in found:
        return UNKNOWN
    return " AND ".join(f"({name})" if len(found) > 1 and " " in name else name for name in found)
