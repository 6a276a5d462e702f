"""Licenses: found in headers, metadata and texts; judged by expression and category."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from identify.vendor.licenses import LICENSES

from mify.curation.licenses import (
    LicensePolicy,
    decide,
    folder_license,
    header_license,
    is_license_name,
    is_vendored,
    metadata_license,
    named_license,
    normalise,
)

POLICY = LicensePolicy()


@pytest.mark.parametrize(
    ("expression", "accepted"),
    [
        ("MIT", True),
        ("Apache-2.0", True),
        ("PSF-2.0", True),
        ("Unlicense", True),
        ("CC0-1.0", True),
        ("GPL-3.0-only", False),
        ("LGPL-2.1-or-later", False),
        ("AGPL-3.0-only", False),
        ("MPL-2.0", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND (MPL-2.0 OR BSD-3-Clause)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("mit", True),
        ("no license at all", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_expressions_are_judged_part_by_part(expression: str, accepted: bool) -> None:
    assert decide(expression, POLICY).accepted is accepted


def test_allow_and_deny_lists_go_before_categories() -> None:
    assert decide("MPL-2.0", LicensePolicy(allow=("MPL-2.0",))).accepted
    assert not decide("MIT", LicensePolicy(deny=("MIT",))).accepted
    assert not decide("MIT", LicensePolicy(allow=("MIT",), deny=("MIT",))).accepted
    assert not decide("CC0-1.0", LicensePolicy(allow_categories=("Permissive",))).accepted
    assert decide("unknown", LicensePolicy(unknown="accept")).accepted


def test_the_decision_names_every_license_and_its_category() -> None:
    assert decide("MIT AND GPL-3.0-only", POLICY).categories == (("GPL-3.0-only", "Copyleft"), ("MIT", "Permissive"))


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("# SPDX-License-Identifier: MIT\n", "MIT"),
        ("#!/bin/sh\n# Copyright x\n# SPDX-License-Identifier: Apache-2.0 OR MIT\n", "Apache-2.0 OR MIT"),
        ("/* SPDX-License-Identifier: GPL-2.0-only */\n", "GPL-2.0-only"),
        ("<!-- SPDX-License-Identifier: MIT -->\n", "MIT"),
        ('"""\nSPDX-License-Identifier: BSD-3-Clause\n"""\n', "BSD-3-Clause"),
        ("// SPDX-License-Identifier: LicenseRef-Proprietary\n", "unknown"),
        ("// SPDX-License-Identifier: none of your business\n", "unknown"),
        ('"""Reads `SPDX-License-Identifier: MIT` headers."""\n', None),
        ("x = 'SPDX-License-Identifier: MIT'\n", None),
        ("no header\n", None),
        ("\n" * 5000 + "# SPDX-License-Identifier: MIT\n", None),
    ],
)
def test_headers(text: str, license: str | None) -> None:
    assert header_license(text) == license


@pytest.mark.parametrize(
    ("name", "license"),
    [
        ("MIT", "MIT"),
        ("MIT License", "MIT"),
        ("The MIT License", "MIT"),
        ("Apache 2.0", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache-2.0", "Apache-2.0"),
        ("BSD 3-Clause", "BSD-3-Clause"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("New BSD", "BSD-3-Clause"),
        ("PSF", "PSF-2.0"),
        ("ISC license", "ISC"),
        ("BSD", "unknown"),
        ("Proprietary", "unknown"),
        ("see LICENSE", "unknown"),
        ("", "unknown"),
    ],
)
def test_names_as_people_write_them(name: str, license: str) -> None:
    assert named_license(name) == license


TEXTS = dict(LICENSES)
BSD, BSD3 = TEXTS["BSD-2-Clause"], TEXTS["BSD-3-Clause"]


def test_metadata_is_asked_in_its_order() -> None:
    mit = "License :: OSI Approved :: MIT License"
    bsd = "License :: OSI Approved :: BSD License"
    assert metadata_license("ISC", "MIT", [mit], []) == "ISC"
    assert metadata_license("not one", "MIT", [], []) == "MIT"
    assert metadata_license(None, "see file", [mit], []) == "MIT"
    assert metadata_license(None, None, [mit, "License :: OSI Approved"], []) == "MIT"
    assert metadata_license(None, "BSD", [bsd], [BSD]) == "BSD-2-Clause"
    assert metadata_license(None, "BSD", [bsd], [BSD3]) == "BSD-3-Clause"
    assert metadata_license(None, BSD, [], []) == "BSD-2-Clause"
    assert metadata_license(None, "BSD", [bsd], []) == "unknown"
    assert metadata_license(None, None, [], []) == "unknown"
    both = metadata_license(None, None, [mit, "License :: OSI Approved :: Apache Software License"], [])
    assert both == "Apache-2.0 AND MIT"


def test_installed_distributions_of_known_license() -> None:
    """Against what these projects say of themselves on their own pages."""
    known = {"numpy": "BSD-3-Clause", "rich": "MIT", "pyarrow": "Apache-2.0", "regex": "Apache-2.0 AND CNRI-Python"}
    for name, license in known.items():
        fields = metadata.metadata(name)
        found = metadata_license(
            fields.get("License-Expression"), fields.get("License"), fields.get_all("Classifier") or [], []
        )
        assert found.startswith(license), name


def test_the_folder_of_this_project_is_apache(checkout: Path) -> None:
    assert folder_license(checkout) == "Apache-2.0"


def test_license_names_are_texts_and_not_programs(tmp_path: Path) -> None:
    names = ["LICENSE", "LICENSE.txt", "LICENCE.md", "COPYING", "COPYING.LESSER", "LICENSE-MIT", "UNLICENSE", "NOTICE"]
    assert all(map(is_license_name, names))
    assert not any(map(is_license_name, ["licenses.py", "license.c", "licensing.md", "copyright.go", "noticeable.txt"]))
    (tmp_path / "licenses.py").write_text(BSD)
    assert folder_license(tmp_path) == "unknown"
    assert folder_license(tmp_path / "absent") == "unknown"


def test_vendored_code_is_not_under_the_packages_license() -> None:
    assert is_vendored("pip/_vendor/rich/x.py")
    assert is_vendored("third_party/x.c")
    assert not is_vendored("vendors/list.py")
    assert not is_vendored("a/vendor.py")
    assert not is_vendored("sympy/external/importtools.py")


def test_normalise_is_idempotent() -> None:
    for expression in ("mit", "apache-2.0 or MIT", "(MIT)"):
        assert normalise(normalise(expression)) == normalise(expression) != "unknown"
