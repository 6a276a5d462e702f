"""Licenses by their words: a license file against the SPDX texts, and the notice at the head of a source file.

The texts are the 35 that come with `identify` (GitHub's list of open-source licenses). A license is found where at
least `MIN_SHARE` of its text's word 3-grams stand in the file: names, years and "the copyright holder" vary, and 317
license files of installed packages reach 0.887 and more for the license that they are, with one exception (0.838, a
BSD of its own wording). What says that it is a license of another kind (a rider against commerce, "for good, not
evil") makes the whole text unknown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

MIN_SHARE = 0.85
MAX_PREAMBLE_WORDS = 250
# Notices stand in the comment or docstring that a file begins with.
HEAD_CHARACTERS = 6000

_SPDX_ID = {
    "AGPL-3.0": "AGPL-3.0-only", "GPL-2.0": "GPL-2.0-only", "GPL-3.0": "GPL-3.0-only", "LGPL-2.1": "LGPL-2.1-only",
    "LGPL-3.0": "LGPL-3.0-only",
}  # fmt: skip
# Of texts that say nearly the same, only the one that more is said of: 0.90 of 0BSD stands in ISC, 0.97 of AFL in OSL.
_FAMILIES = (
    {"0BSD", "ISC"}, {"AFL-3.0", "OSL-3.0"}, {"AGPL-3.0-only", "GPL-3.0-only"}, {"Apache-2.0", "ECL-2.0"},
    {"CC-BY-4.0", "CC-BY-SA-4.0"}, {"EPL-1.0", "EPL-2.0"}, {"EUPL-1.1", "EUPL-1.2"}, {"MS-PL", "MS-RL"},
    {"BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear"},
)  # fmt: skip
# What only this license says, where its whole text is not at hand, or where its title alone is a reason for care.
_CLAUSES = {
    "PSF-2.0": "python software foundation license version 2",
    "MPL-2.0": "mozilla public license version 2 0",
    "AGPL-3.0-only": "gnu affero general public license version 3",
    "LGPL-3.0-only": "gnu lesser general public license version 3",
    "LGPL-2.1-only": "gnu lesser general public license version 2 1",
    "GPL-3.0-only": "gnu general public license version 3 29 june 2007",
    "GPL-2.0-only": "gnu general public license version 2 june 1991",
}
# Sentences that take back what the license around them grants.
_RIDERS = (
    "shall be used for good not evil", "commons clause", "non commercial purposes only", "noncommercial purposes only",
    "not be used for commercial", "not be used for any commercial", "for evaluation purposes only",
    "for non commercial use only", "for noncommercial use only", "for academic use only", "for research purposes only",
)  # fmt: skip
_COPYRIGHT = re.compile(r"(?im)^\W*copyright (?:\(c\)|©|\d|\[|<|by ).*$")
_WORD = re.compile(r"[a-z0-9]+")

_Gram = tuple[str, str, str]


def words(text: str) -> list[str]:
    """Lower-case ASCII words and numbers, the lines of copyright holders left out."""
    return _WORD.findall(_COPYRIGHT.sub("", text).lower())


def fingerprint(text: str) -> list[str]:
    """SPDX ids of the licenses whose text stands in a text, in the order in which they appear.

    [] where a rider changes the terms, since no SPDX id says what is left.
    """
    return [name for _, name in _fingerprint(text)]


def own_license(text: str) -> str | None:
    """The license that a license file gives its project: by custom the first; what follows are those of bundled parts.

    None where the file begins with more words than a title and a preamble need: with a license that is not known here.
    """
    found = _fingerprint(text)
    return found[0][1] if found and found[0][0] <= MAX_PREAMBLE_WORDS else None


@functools.lru_cache(maxsize=1024)
def _fingerprint(text: str) -> tuple[tuple[int, str], ...]:
    """(word at which it begins, license) in that order."""
    said = words(text)
    joined = " ".join(said)
    if any(rider in joined for rider in _RIDERS):
        return ()
    lengths, sizes, index = _references()
    places: dict[str, list[int]] = {}
    seen: set[_Gram] = set()
    for place, gram in enumerate(_grams(said)):
        if gram in index and gram not in seen:
            seen.add(gram)
            for name in index[gram]:
                places.setdefault(name, []).append(place)
    shares = {name: len(found) / sizes[name] for name, found in places.items()}
    shares = {name: share for name, share in shares.items() if share >= MIN_SHARE}
    for family in _FAMILIES:
        best = max(family & shares.keys(), key=lambda name: (shares[name], sizes[name]), default=None)
        for name in family - {best}:
            shares.pop(name, None)
    # From the middle of its words half its length back: its first words may stand in another license before it.
    found = {name: max(0, places[name][len(places[name]) // 2] - lengths[name] // 2) for name in shares}
    if (bsd := next((name for name in found if name.startswith("BSD-")), None)) is not None:
        found[_bsd(joined)] = found.pop(bsd)
    if "MIT" in found and "shall be included in all copies" not in joined:
        found["MIT-0"] = found.pop("MIT")
    spans = [(begin, begin + lengths.get(name, 0)) for name, begin in found.items()]
    for name, clause in _CLAUSES.items():
        if name not in found and (at := joined.find(clause)) >= 0:
            place = joined.count(" ", 0, at)
            # MPL 2.0 names the GNU licenses without being one.
            if not any(begin <= place < end for begin, end in spans):
                found[name] = place
    return tuple(sorted((place, name) for name, place in found.items()))


def _bsd(joined: str) -> str:
    """Which of the BSD licenses: they differ by single clauses, and each names its own holders."""
    if "all advertising materials" in joined:
        return "BSD-4-Clause"
    if "no express or implied licenses to any party s patent rights" in joined:
        return "BSD-3-Clause-Clear"
    third = ("neither the name", "names of its contributors", "may not be used to end", "names of the contributors")
    return "BSD-3-Clause" if any(clause in joined for clause in third) else "BSD-2-Clause"


def _grams(said: list[str]) -> Iterator[_Gram]:
    return zip(said, said[1:], said[2:], strict=False)


@functools.lru_cache(maxsize=1)
def _references() -> tuple[dict[str, int], dict[str, int], dict[_Gram, list[str]]]:
    """(license → its words, license → its distinct 3-grams, 3-gram → licenses that have it)."""
    from identify.vendor.licenses import LICENSES

    lengths: dict[str, int] = {}
    sizes: dict[str, int] = {}
    index: dict[_Gram, list[str]] = {}
    for key, text in LICENSES:
        name, said = _SPDX_ID.get(key, key), words(text)
        grams = set(_grams(said))
        lengths[name], sizes[name] = len(said), len(grams)
        for gram in grams:
            index.setdefault(gram, []).append(name)
    return lengths, sizes, index


# The notices that licenses ask to be put at the head of each file, in lower-case words.
_NOTICES = (
    ("Apache-2.0", re.compile(r"licensed under the apache license version 2 0")),
    ("Apache-2.0", re.compile(r"(?:released|distributed|licensed|available) under (?:the )?apache (?:license )?2 0")),
    ("MPL-2.0", re.compile(r"(?:subject to|under) the terms of the mozilla public license v(?:ersion)? 2 0")),
    ("EPL-2.0", re.compile(r"under the terms of the eclipse public license (?:v |version )?2 0")),
    ("EPL-1.0", re.compile(r"under the terms of the eclipse public license (?:v |version )?1 0")),
    ("BSL-1.0", re.compile(r"(?:distributed|licensed) under the boost software license version 1 0")),
    ("CDDL-1.0", re.compile(r"common development and distribution license")),
    ("MIT", re.compile(r"(?:released|distributed|licensed|available) under the (?:terms of the )?mit licen[sc]e")),
)  # fmt: skip
_GNU = re.compile(
    r"(?:under the terms of|licensed under|under) the gnu (affero |lesser |library )?general public licen[sc]e"
    r"(?: as published by the free software foundation)?(?: either)?(?: v(?:ersion)?)? ?(\d(?: \d)?)?"
    r"(?: of the licen[sc]e)?( or (?:at your option )?any later version)?"
)
_GNU_NAMES = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL", None: "GPL"}
_HINTS = ("licen", "permission", "redistribution")


_HEAD_LINES = (
    "#", "//", "--", ";", "%", "*", "/*", "<!--", "!", '"', "'''", "rem ", "dnl ", 'r"""', "r'''", "<?php", "package ",
)  # fmt: skip


def notice_license(text: str) -> str | None:
    """The license that a file's own head states in words, None where it states none.

    Read are the comment or docstring that the file begins with, up to `HEAD_CHARACTERS`: what a program says of
    licenses further down is not about itself. A GNU license without a version is "GPL-1.0-or-later" and its like: any
    version was offered.
    """
    head = text[:HEAD_CHARACTERS]
    lowered = head.lower()
    if not any(hint in lowered for hint in _HINTS):
        return None
    head = _head_comment(head)
    joined = " ".join(_WORD.findall(head.lower()))
    if (gnu := _GNU.search(joined)) is not None:
        return _gnu_license(*gnu.groups())
    for name, pattern in _NOTICES:
        if pattern.search(joined):
            return name
    whole = fingerprint(head)
    return whole[0] if whole else None


def _gnu_license(kind: str | None, version: str | None, later: str | None) -> str:
    name = _GNU_NAMES[kind]
    if version is None:
        return {"GPL": "GPL-1.0-or-later", "LGPL": "LGPL-2.0-or-later", "AGPL": "AGPL-3.0-or-later"}[name]
    number = version.replace(" ", ".") if " " in version else f"{version}.0"
    return f"{name}-{number}-{'or-later' if later else 'only'}"


def _head_comment(head: str) -> str:
    """The comment lines and the first docstring or block comment that a file begins with."""
    taken: list[str] = []
    inside = ""  # what ends the block that is open
    for line in head.split("\n"):
        stripped = line.strip().lower()
        if inside:
            taken.append(line)
            if inside in stripped:
                inside = ""
            continue
        if not stripped:
            continue
        if not stripped.startswith(_HEAD_LINES):
            break
        taken.append(line)
        for begin, end in (("/*", "*/"), ("<!--", "-->"), ('"""', '"""'), ("'''", "'''")):
            at = stripped.find(begin)
            if 0 <= at <= 1 and end not in stripped[at + len(begin) :]:
                inside = end
    return "\n".join(taken)
