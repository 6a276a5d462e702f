"""Syntax by tree-sitter: whole programs pass, broken ones are told with their line, and what is not checked is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from mify.curation import extras, syntax
from mify.curation.config import CurationConfig, DecontaminationRules, LanguageRules
from mify.curation.documents import Document, read_rejected
from mify.curation.pipeline import curate
from mify.curation.quality import QualityRules, StarCoder2Rules
from mify.curation.syntax import GRAMMARS, SyntaxRules, checked_languages, error_fraction, syntax_finding
from mify.errors import MifyError

PROGRAMS = {
    "c": '#include <stdio.h>\nint main(void) { for (int i = 0; i < 3; ++i) printf("%d", i); return 0; }\n',
    "cpp": "template <class T> T f(const std::vector<T>& x) { T s{}; for (T v : x) s += v; return s; }\n",
    "csharp": 'using System;\nclass A { static void Main() { Console.WriteLine("x"); } }\n',
    "go": 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println(1) }\n',
    "java": "public class A { public static void main(String[] a) { System.out.println(1); } }\n",
    "javascript": "export const f = async (x) => { const {a, ...b} = await x; return `${a}`; };\n",
    "php": "<?php\nfunction f(int $x): int { return $x + 1; }\n",
    "ruby": "class A\n  def f(x) = x.map { |y| y + 1 }\nend\n",
    "rust": 'fn main() { let v: Vec<u8> = (0..3).map(|x| x as u8).collect(); println!("{:?}", v); }\n',
    "shell": 'for f in *.txt; do\n  if [ -f "$f" ]; then echo "${f%.txt}"; fi\ndone\n',
    "typescript": "interface A { x: number }\nexport function f<T extends A>(a: T): number { return a.x; }\n",
}

pytest.importorskip("tree_sitter")


def test_every_grammar_has_a_program() -> None:
    assert PROGRAMS.keys() == GRAMMARS.keys()
    assert checked_languages(SyntaxRules()) == tuple(sorted(GRAMMARS))
    assert checked_languages(SyntaxRules(tree_sitter="off")) == ()


@pytest.mark.parametrize("language", sorted(PROGRAMS))
def test_whole_programs_pass_and_broken_ones_are_told(language: str) -> None:
    text = PROGRAMS[language]
    assert error_fraction(text, language) == (0.0, 0)
    assert syntax_finding(text * 3 if language not in ("php", "go") else text, language, SyntaxRules()) is None
    # A merge conflict, cut in the middle of a word of its second half.
    broken = f"<<<<<<< HEAD\n{text[: len(text) // 2]}\n=======\n)))}}]] ((( {text[: len(text) // 3]}\n>>>>>>> other\n"
    finding = syntax_finding(broken, language, SyntaxRules())
    assert finding is not None
    assert finding.rule == f"tree-sitter/{language}"
    assert syntax_finding(broken, language, SyntaxRules(max_error_fraction=1.0)) is None
    assert syntax_finding(broken, language, SyntaxRules(tree_sitter="off")) is None


def test_the_fraction_is_of_bytes_and_the_line_of_the_first() -> None:
    text = PROGRAMS["java"]
    one_bracket = text.rstrip().removesuffix("}")
    fraction, line = error_fraction("\n\n" + one_bracket, "java")
    assert 0 < fraction < 0.05
    assert line == 3
    assert error_fraction("é" * 50 + " = = = ;", "c")[0] <= 1.0
    assert error_fraction("", "c") == (0.0, 0)
    assert syntax_finding("def broken(:\n", "python", SyntaxRules()) is None  # Python has its own parser


def test_a_header_may_be_of_either_language_and_a_shell_of_another_family() -> None:
    assert error_fraction(PROGRAMS["cpp"], "c")[0] > 0.1
    assert syntax_finding(PROGRAMS["cpp"], "c", SyntaxRules(), "vector.h") is None
    assert syntax_finding("((( ) ] } = = = ;\n" * 5, "c", SyntaxRules(), "x.h") is not None
    fish = "function f\n    if test $x = 1\n        echo (date)\n    end\nend\n"
    assert syntax_finding(fish, "shell", SyntaxRules(), "a.sh") is not None
    assert syntax_finding(fish, "shell", SyntaxRules(), "a.fish") is None
    assert syntax_finding("#!/usr/bin/fish\n" + fish, "shell", SyntaxRules(), "script") is None


def test_real_headers_pass(checkout: Path) -> None:
    for path in sorted((checkout / "csrc" / "minhash").glob("*.hpp")):
        assert syntax_finding(path.read_text(encoding="utf-8"), "cpp", SyntaxRules()) is None, path


def document(text: str, path: str, language: str) -> Document:
    return Document.create(text, "code", language, "MIT", "s", "r", path)


def test_the_stage_and_the_report(tmp_path: Path) -> None:
    good, bad = PROGRAMS["javascript"], "function ( { ] ) = ;\n" * 5
    documents = [
        document(good, "good.js", "javascript"),
        document(bad, "bad.js", "javascript"),
        document("module Main where\nmain = print 1\n", "a.hs", "haskell"),
    ]
    config = CurationConfig(
        decontamination=DecontaminationRules(benchmarks=()), language=LanguageRules(unknown="accept")
    )
    report = curate(documents, tmp_path, config).data
    (item,) = read_rejected(tmp_path / "rejected.parquet")
    assert (item.document.path, item.stage, item.reason) == ("bad.js", "syntax", "tree-sitter/javascript")
    assert "from line 1" in item.evidence
    assert report["tools"]["syntax"]["checked"] == ["python", *sorted(GRAMMARS)]
    assert report["tools"]["syntax"]["unchecked"] == {"haskell": 1}
    assert "tree-sitter-javascript" in report["tools"]["versions"]


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (extras, syntax):
        monkeypatch.setattr(module, "found", lambda name: False)
    rules = CurationConfig(
        decontamination=DecontaminationRules(benchmarks=()),
        quality=QualityRules(StarCoder2Rules(enabled=False)),
        syntax=SyntaxRules(tree_sitter="required"),
    )
    bad = document("function ( { ] ) = ;\n" * 5, "bad.js", "javascript")
    with pytest.raises(MifyError, match=r"syntax.tree_sitter = \"required\", and tree-sitter is not installed"):
        curate([bad], tmp_path / "out", rules)
    installed = CurationConfig(rules.license, decontamination=rules.decontamination, quality=rules.quality)
    report = curate([bad], tmp_path / "out", installed).data
    assert report["totals"]["kept"]["documents"] == 1
    assert report["tools"]["syntax"] == {"checked": ["python"], "unchecked": {"javascript": 1}}
