"""Which license a document is under, and whether the policy takes it.

Found in this order: an `SPDX-License-Identifier` in the head of the file, the notice that its first comment holds, the
metadata of its package (expression, license field, classifiers), the text of a license file against the SPDX texts
(`mify.curation.license_texts`). Judged by the categories of the ScanCode license database, which comes with
`license-expression`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mify.curation.languages import UNKNOWN, language_of
from mify.curation.license_texts import own_license

# An identifier counts where a line begins with it, comment signs aside, not where a program talks about identifiers.
_HEADER = re.compile(r"^[ \t]*(?:[#/*;%!<.-]+|REM\b|dnl\b)?[-#*! \t]*SPDX-License-Identifier:[ \t]*([^\n]+)", re.M)
_HEADER_CHARACTERS = 4096
# Folders of code that others wrote: the package's own metadata does not speak for it.
_VENDORED = re.compile(r"(?:^|/)(?:_?vendor(?:ed)?_?|_?third_?party|extern|node_modules)/", re.I)


@dataclass(frozen=True)
class LicensePolicy:
    """What is taken.

    Args:
        allow_categories: ScanCode categories of which every license is taken.
        allow: SPDX ids taken whatever their category.
        deny: SPDX ids refused whatever their category; it goes before `allow`.
        unknown: whether a document of unknown license is rejected or accepted.
    """

    allow_categories: tuple[str, ...] = ("Permissive", "Public Domain")
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unknown: Literal["reject", "accept"] = "reject"


@dataclass(frozen=True)
class LicenseDecision:
    """Whether an expression is taken, and the licenses with their categories that decided it."""

    accepted: bool
    categories: tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=4096)
def decide(expression: str, policy: LicensePolicy) -> LicenseDecision:
    """Judges an SPDX expression: of `A AND B` both must be taken, of `A OR B` one, of `A WITH E` A (E only grants)."""
    if expression == UNKNOWN:
        return LicenseDecision(policy.unknown == "accept", ())
    parsed = _parse(expression)
    if parsed is None:
        return LicenseDecision(policy.unknown == "accept", ((expression, "not an SPDX expression"),))
    seen: dict[str, str] = {}
    accepted = _accepted(parsed, policy, seen)
    return LicenseDecision(accepted, tuple(sorted(seen.items())))


def _accepted(node: Any, policy: LicensePolicy, seen: dict[str, str]) -> bool:
    operator = getattr(node, "operator", "")
    if operator:
        # Every part is judged, so that the evidence is complete.
        verdicts = [_accepted(part, policy, seen) for part in node.args]
        return all(verdicts) if operator.strip() == "AND" else any(verdicts)
    key = node.license_symbol.key if hasattr(node, "license_symbol") else node.key
    category = _categories().get(key.lower(), "unknown to ScanCode")
    seen[key] = category
    return key not in policy.deny and (key in policy.allow or category in policy.allow_categories)


def normalise(expression: str) -> str:
    """An SPDX expression in its canonical spelling, "unknown" where it is none."""
    parsed = _parse(expression)
    return UNKNOWN if parsed is None else str(parsed)


def header_license(text: str) -> str | None:
    """The expression of an SPDX header in the first 4,096 characters, "unknown" where it is none; None without one."""
    match = _HEADER.search(text, 0, _HEADER_CHARACTERS)
    if match is None:
        return None
    return normalise(re.sub(r"(\*/|-->|\"\"\"|\*+)\s*$", "", match.group(1).strip()).strip())


def is_vendored(path: str) -> bool:
    """Whether the path says that the file comes from another project than the package that carries it."""
    return _VENDORED.search(path) is not None


def metadata_license(
    expression: str | None, field: str | None, classifiers: Sequence[str], license_texts: Sequence[str]
) -> str:
    """The SPDX expression of a Python distribution, "unknown" where its metadata and license files do not tell.

    Args:
        expression: `License-Expression`.
        field: `License`: a name, or by old custom a whole license text.
        classifiers: the trove classifiers.
        license_texts: contents of its license files, asked last: they name the licenses of bundled parts as well.
    """
    if expression and (found := normalise(expression)) != UNKNOWN:
        return found
    field = (field or "").strip()
    if field and len(field) < 100 and (found := named_license(field)) != UNKNOWN:
        return found
    troves = [name.split("::")[-1].strip() for name in classifiers if name.startswith("License ::")]
    troves = [name for name in troves if name != "OSI Approved"]
    # "BSD License" is a family: which one, only a text tells.
    if troves and all(name in _TROVE for name in troves):
        return normalise(" AND ".join(sorted({_TROVE[name] for name in troves})))
    for text in (field, *license_texts):
        if (found_text := own_license(text)) is not None:
            return found_text
    return UNKNOWN


def named_license(name: str) -> str:
    """The SPDX id of a license as people write it ("Apache 2.0", "BSD 3-Clause"), "unknown" where it is ambiguous."""
    if (found := normalise(name)) != UNKNOWN:
        return found
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)*", name.lower())
    key = " ".join(word for word in words if word not in _FILLERS)
    return _NAMES.get(key, UNKNOWN)


_FILLERS = frozenset(["the", "license", "licence", "licensed", "version", "v", "under", "software", "clause", "a"])
_NAMES = {
    "mit": "MIT", "mit expat": "MIT", "expat": "MIT", "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0",
    "asl 2.0": "Apache-2.0", "bsd 3": "BSD-3-Clause", "3 bsd": "BSD-3-Clause", "new bsd": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause", "revised bsd": "BSD-3-Clause", "bsd new": "BSD-3-Clause", "bsd 2": "BSD-2-Clause",
    "2 bsd": "BSD-2-Clause", "simplified bsd": "BSD-2-Clause", "freebsd": "BSD-2-Clause", "isc": "ISC",
    "psf": "PSF-2.0", "psfl": "PSF-2.0", "psf 2": "PSF-2.0", "python foundation": "PSF-2.0", "unlicense": "Unlicense",
    "mpl 2.0": "MPL-2.0", "mozilla public 2.0": "MPL-2.0", "zlib": "Zlib", "boost 1.0": "BSL-1.0",
    "lgpl 3": "LGPL-3.0-only", "lgpl 2.1": "LGPL-2.1-only", "gpl 2": "GPL-2.0-only", "gpl 3": "GPL-3.0-only",
    "gplv 3": "GPL-3.0-only", "gplv 2": "GPL-2.0-only", "gnu gpl 3": "GPL-3.0-only", "cc 0": "CC0-1.0",
}  # fmt: skip
_TROVE = {
    "MIT License": "MIT", "MIT No Attribution License (MIT-0)": "MIT-0", "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC", "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "Mozilla Public License 1.1 (MPL 1.1)": "MPL-1.1",
    "zlib/libpng License": "Zlib", "Boost Software License 1.0 (BSL-1.0)": "BSL-1.0",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0", "Zero-Clause BSD (0BSD)": "0BSD",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
    "Eclipse Public License 2.0 (EPL-2.0)": "EPL-2.0",
}  # fmt: skip


def folder_license(folder: Path) -> str:
    """The license that a project's folder states in its license files, "unknown" where it states none."""
    for path in license_files(folder):
        try:
            found = own_license(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found is not None:
            return found
    return UNKNOWN


def license_files(folder: Path) -> list[Path]:
    """The license files directly in a folder, in the order of their names."""
    try:
        names = sorted(path for path in folder.iterdir() if is_license_name(path.name) and path.is_file())
    except OSError:
        return []
    return names


def is_license_name(name: str) -> bool:
    """Whether a file's name says that it is a license text or a notice; `license.py` is a program."""
    if re.match(r"(?i)((un)?licen[cs]es?|copying|copyright|notice|patents)($|[-._ ])", name) is None:
        return False
    return language_of(name) in ("text", "markdown", "restructuredtext", "html", UNKNOWN)


@functools.lru_cache(maxsize=1)
def _licensing() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


@functools.lru_cache(maxsize=4096)
def _parse(expression: str) -> Any:
    from license_expression import ExpressionError, ExpressionParseError

    try:
        parsed = _licensing().parse(expression, validate=True)
    except (ExpressionError, ExpressionParseError):
        return None
    return parsed


@functools.lru_cache(maxsize=1)
def _categories() -> dict[str, str]:
    """SPDX id in lower case → ScanCode category."""
    import license_expression

    index = Path(license_expression.__file__).with_name("data") / "scancode-licensedb-index.json"
    categories: dict[str, str] = {}
    for entry in json.loads(index.read_text(encoding="utf-8")):
        for key in (entry.get("spdx_license_key"), *entry.get("other_spdx_license_keys", ())):
            if key:
                categories.setdefault(key.lower(), entry.get("category", ""))
    return categories
