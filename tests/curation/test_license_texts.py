"""Licenses by their words: every SPDX text is itself, altered ones are not, and a file's notice is read."""

from __future__ import annotations

import random
import re
from importlib import metadata
from pathlib import Path

import pytest
from identify.vendor.licenses import LICENSES

from mify.curation.license_texts import fingerprint, notice_license, own_license

TEXTS = dict(LICENSES)
GNU = {"AGPL-3.0", "GPL-2.0", "GPL-3.0", "LGPL-2.1", "LGPL-3.0"}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_text_is_its_own_license(name: str) -> None:
    wanted = f"{name}-only" if name in GNU else name
    filled = re.sub(r"\[year\]|<year>", "2024", TEXTS[name]).replace("[fullname]", "Jane Doe and others")
    for text in (TEXTS[name], filled, filled.replace("\n", "\r\n"), filled.upper()):
        assert own_license(text) == wanted
        assert fingerprint(text)[0] == wanted
    # As comment lines, as in a source file.
    assert own_license("\n".join(f" * {line}" for line in filled.split("\n"))) == wanted


@pytest.mark.parametrize("name", ["MIT", "BSD-3-Clause", "Apache-2.0", "ISC", "Zlib"])
def test_half_a_text_or_another_order_of_its_words_is_no_license(name: str) -> None:
    words = TEXTS[name].split()
    assert own_license(" ".join(words[: len(words) // 2])) is None
    random.Random(1).shuffle(words)
    assert own_license(" ".join(words)) is None


def test_a_rider_takes_the_grant_back() -> None:
    for rider in (
        "The Software shall be used for Good, not Evil.",
        '"Commons Clause" License Condition v1.0',
        "This copy may not be used for commercial purposes.",
        "For non-commercial use only.",
    ):
        assert fingerprint(f"{TEXTS['MIT']}\n{rider}\n") == []
        assert notice_license(f"/*\n{TEXTS['MIT']}\n{rider}\n*/\n") is None


def test_variants_of_one_family_are_told_apart() -> None:
    bsd = TEXTS["BSD-3-Clause"]
    regents = bsd.replace("the copyright holder nor", "the Regents of the University nor")
    assert own_license(regents) == "BSD-3-Clause"
    advertising = bsd + "\nAll advertising materials mentioning features or use of this software must display this."
    assert own_license(advertising) == "BSD-4-Clause"
    no_attribution = re.sub(r"(?s)The above copyright notice and this.*?Software\.\n", "", TEXTS["MIT"])
    assert no_attribution != TEXTS["MIT"]
    assert own_license(no_attribution) == "MIT-0"


def test_the_projects_own_license_comes_first() -> None:
    bundle = f"{TEXTS['BSD-2-Clause']}\n\nThis binary bundles:\n{TEXTS['GPL-3.0']}\n{TEXTS['MIT']}"
    assert fingerprint(bundle) == ["BSD-2-Clause", "GPL-3.0-only", "MIT"]
    assert own_license(bundle) == "BSD-2-Clause"
    # Terms that are not known, with the licenses of bundled parts behind them.
    assert own_license("You may look at this and nothing else. " * 60 + TEXTS["MIT"]) is None
    assert fingerprint("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007") == ["GPL-3.0-only"]
    # MPL names the GNU licenses as secondary ones.
    assert fingerprint(TEXTS["MPL-2.0"]) == ["MPL-2.0"]
    assert fingerprint("all rights reserved") == []
    assert own_license("") is None


def test_installed_license_files_are_what_their_metadata_says() -> None:
    """Against the SPDX expression that the projects themselves state, where it is a single license of the list."""
    checked = 0
    for distribution in metadata.distributions():
        stated = distribution.metadata.get("License-Expression", "")
        files = [file for file in distribution.files or [] if re.search(r"(?i)/licen[cs]e(\.\w+)?$", str(file))]
        if stated not in TEXTS or len(files) != 1:
            continue
        path = Path(str(distribution.locate_file(files[0])))
        found = own_license(path.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            assert found == stated, path
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ('# Licensed under the Apache License, Version 2.0 (the "License");\n# you may not use\nx = 1\n', "Apache-2.0"),
        ("/* This is subject to the terms of the Mozilla Public\n * License, v. 2.0. */\n", "MPL-2.0"),
        (
            "// This program is free software; you can redistribute it and/or modify it under the terms of the GNU\n"
            "// General Public License as published by the Free Software Foundation; either version 2 of the License,\n"
            "// or (at your option) any later version.\nint x;\n",
            "GPL-2.0-or-later",
        ),
        (
            "/* under the terms of the GNU Lesser General Public\n   License as published by the Free Software\n"
            "   Foundation; version 2.1 of the License. */\n",
            "LGPL-2.1-only",
        ),
        ("# under the terms of the GNU Affero General Public License version 3\n", "AGPL-3.0-only"),
        ("# under the GNU General Public License.\n", "GPL-1.0-or-later"),
        ('"""A module.\n\nReleased under the MIT license.\n"""\n', "MIT"),
        ("package main\n\n// Use of this source code is governed by a license found in LICENSE.\n", None),
        ("import re\n# Licensed under the Apache License, Version 2.0\n", None),
        ("NOTICE = 'Licensed under the Apache License, Version 2.0'\n", None),
        ("# nothing of the kind\n", None),
        ("", None),
        (f"/*\n{TEXTS['MIT']}*/\nint main(void) {{ return 0; }}\n", "MIT"),
        ("\n".join(f"# {line}" for line in TEXTS["BSD-3-Clause"].split("\n")) + "\nx = 1\n", "BSD-3-Clause"),
    ],
)
def test_notices(text: str, license: str | None) -> None:
    assert notice_license(text) == license
