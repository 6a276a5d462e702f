"""Signatures against datasketch, against plain-Python formulas, and as stored files."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference_minhash as reference

from mify._core import minhash as core
from mify.curation.signatures import (
    SignatureConfig,
    Signatures,
    core_config,
    from_datasketch,
    jaccard,
    permutations,
    signatures,
    to_datasketch,
)
from mify.errors import MifyError

datasketch = pytest.importorskip("datasketch")

_WORDS = ["def", "return", "Self", "x", "value", "I18N", "été", "Größe", "数据", "f_1", "0", "import", "os", "path"]


def sample_texts(count: int, seed: int = 0) -> list[str]:
    random_ = random.Random(seed)
    sizes = [0, 1, 4, 5, 6, *(random_.randrange(7, 400) for _ in range(count - 5))]
    return [" ".join(random_.choices(_WORDS, k=size)) for size in sizes]


@pytest.mark.parametrize("scheme", ["affine32", "affine64", "legacy"])
@pytest.mark.parametrize(("num_perm", "seed"), [(1, 1), (100, 3), (128, 1), (255, 2**32 - 1)])
def test_bit_identical_to_datasketch_by_sha1(scheme: str, num_perm: int, seed: int) -> None:
    config = SignatureConfig(num_perm=num_perm, scheme=scheme, hash="sha1", lowercase=False, seed=seed)
    texts = sample_texts(30)
    signed = signatures(texts, config)
    theirs = datasketch.MinHash.bulk(
        [[shingle.encode() for shingle in reference.shingles(text, lowercase=False)] for text in texts],
        num_perm=num_perm,
        seed=seed,
        scheme=scheme,
    )
    assert np.array_equal(signed.values, np.array([sketch.hashvalues for sketch in theirs]))


@pytest.mark.parametrize("scheme", ["affine32", "affine64", "legacy"])
def test_bit_identical_to_datasketch_by_xxh32_and_lower_case(scheme: str) -> None:
    config = SignatureConfig(num_perm=64, scheme=scheme, hash="xxh32", ngram=3)
    texts = sample_texts(20)
    theirs = datasketch.MinHash.bulk(
        [[shingle.encode() for shingle in reference.shingles(text, 3)] for text in texts],
        num_perm=64,
        scheme=scheme,
        hashfunc=core.xxh32,
    )
    assert np.array_equal(signatures(texts, config).values, np.array([sketch.hashvalues for sketch in theirs]))


def test_fast_hash_is_datasketch_over_the_folded_hash() -> None:
    texts = sample_texts(20)
    theirs = [datasketch.MinHash(num_perm=96, hashfunc=int) for _ in texts]
    for sketch, text in zip(theirs, texts, strict=True):
        hashes = core.shingle_hashes(text, 5, True, "fast64")
        sketch.update_batch([int(h) for h in (hashes ^ (hashes >> np.uint64(32))) & np.uint64(2**32 - 1)])
    signed = signatures(texts, SignatureConfig(num_perm=96))
    assert np.array_equal(signed.values, np.array([sketch.hashvalues for sketch in theirs]))


def _fmix64(h: int) -> int:
    mask = 2**64 - 1
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & mask
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return h ^ h >> 33


def _one_permutation(hashes: list[int], bins: int, seed: int) -> list[int]:
    """One-permutation hashing with optimal densification, as csrc/minhash/signature.cpp defines it."""
    filled: dict[int, int] = {}
    for h in hashes:
        product = (h ^ _fmix64(seed)) * 0xE7037ED1A0B428DB
        x = (product ^ product >> 64) & (2**64 - 1)
        place, value = (x >> 32) * bins >> 32, x & 0xFFFFFFFF
        filled[place] = min(filled.get(place, 2**32), value)
    if not filled:
        return [2**32 - 1] * bins
    out = []
    for place in range(bins):
        attempt, drawn = 0, place
        while drawn not in filled:
            attempt += 1
            mixed = _fmix64((place << 32 | attempt) ^ (seed * 0x9E3779B97F4A7C15 & (2**64 - 1)))
            drawn = (mixed >> 32) * bins >> 32
        out.append(filled[drawn])
    return out


@pytest.mark.parametrize("num_perm", [1, 64, 100, 128])
def test_one_permutation_hashing_is_its_definition(num_perm: int) -> None:
    config = SignatureConfig(num_perm=num_perm, scheme="one_permutation", seed=11)
    texts = sample_texts(15)
    signed = signatures(texts, config)
    for text, row in zip(texts, signed.values, strict=True):
        hashes = core.shingle_hashes(text, 5, True, "fast64").tolist()
        assert row.tolist() == _one_permutation(hashes, num_perm, 11)


@pytest.mark.parametrize("scheme", ["affine32", "affine64", "one_permutation"])
def test_estimates_are_unbiased_within_their_error(scheme: str) -> None:
    # Pairs with a known similarity: 600 words each, every word once, so that n-grams of one word are sets of 600.
    common, size, pairs, num_perm = 400, 600, 60, 256
    expected = common / (2 * size - common)
    texts = []
    for pair in range(pairs):
        shared = [f"s{pair}_{i}" for i in range(common)]
        for side in "xy":
            texts.append(" ".join(shared + [f"{side}{pair}_{i}" for i in range(size - common)]))
    signed = signatures(texts, SignatureConfig(num_perm=num_perm, ngram=1, scheme=scheme))
    estimates = np.array([signed.jaccard(2 * i, 2 * i + 1) for i in range(pairs)])
    error = np.sqrt(expected * (1 - expected) / num_perm)
    assert abs(estimates.mean() - expected) < 4 * error / np.sqrt(pairs)
    assert 0.6 * error < estimates.std() < 1.5 * error


def test_exact_jaccard_is_that_of_the_shingle_sets() -> None:
    texts = sample_texts(12, seed=4)
    for x in texts:
        for y in texts:
            expected = reference.jaccard(set(reference.shingles(x)), set(reference.shingles(y)))
            assert jaccard(x, y) == expected


def test_pre_hashed_shingles_give_the_same_signature() -> None:
    texts = sample_texts(10)
    for scheme in ("affine32", "affine64", "one_permutation"):
        config = SignatureConfig(num_perm=100, scheme=scheme)
        parts = [core.shingle_hashes(text, 5, True, "fast64") for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.uint64)
        values = core.signatures_of_hashes(np.concatenate(parts), offsets, core_config(config))
        assert np.array_equal(values, signatures(texts, config).values)


def test_texts_of_every_kind_give_the_same_signatures() -> None:
    texts = [*sample_texts(40), "", "x"]
    expected = signatures(texts).values
    encoded = [text.encode() for text in texts]
    kinds = [
        encoded,
        tuple(texts),
        pa.array(texts, pa.string()),
        pa.array(texts, pa.large_string()),
        pa.array(encoded, pa.binary()),
        pa.chunked_array([pa.array(texts[:7]), pa.array(texts[7:])]),
    ]
    for kind in kinds:
        assert np.array_equal(signatures(kind).values, expected)
    sliced = pa.array(["not this", *texts, "nor this"]).slice(1, len(texts))
    assert np.array_equal(signatures(sliced).values, expected)


def test_threads_do_not_change_the_result() -> None:
    texts = sample_texts(200, seed=9)
    one, three = signatures(texts), signatures(texts, threads=3)
    assert np.array_equal(one.values, three.values)
    assert np.array_equal(one.num_shingles, three.num_shingles)


def test_counts_say_what_was_in_a_text() -> None:
    signed = signatures([b"", b"a b", b"a b c d e f", b"caf\xe9 \xff\xfe x"])
    assert signed.num_shingles.tolist() == [0, 1, 2, 1]
    assert signed.invalid_bytes.tolist() == [0, 0, 0, 3]
    assert (signed.values[0] == 2**32 - 1).all()


def test_to_datasketch_and_back() -> None:
    texts = sample_texts(8)
    for scheme, hash_ in [("affine32", "fast64"), ("affine64", "sha1"), ("legacy", "xxh32")]:
        config = SignatureConfig(num_perm=64, scheme=scheme, hash=hash_, seed=5)
        signed = signatures(texts, config)
        sketches = to_datasketch(signed)
        back = from_datasketch(sketches, config)
        assert np.array_equal(back.values, signed.values)
        assert back.values.dtype == config.dtype
        assert ((back.num_shingles > 0) == (signed.num_shingles > 0)).all()
        assert sketches[6].jaccard(sketches[7]) == signed.jaccard(6, 7)


def test_a_sha1_sketch_goes_on_in_datasketch() -> None:
    config = SignatureConfig(hash="sha1", ngram=1, lowercase=False)
    (sketch,) = to_datasketch(signatures(["a b"], config))
    sketch.update(b"c")
    assert np.array_equal(sketch.hashvalues, signatures(["a b c"], config).values[0])
    (ours,) = to_datasketch(signatures(["a b"], replace(config, hash="fast64")))
    with pytest.raises(MifyError, match="sha1"):
        ours.update(b"c")


def test_foreign_sketches_are_refused() -> None:
    config = SignatureConfig(num_perm=16)
    for foreign, name in [
        (datasketch.MinHash(num_perm=16, seed=2), "seed"),
        (datasketch.MinHash(num_perm=8), "num_perm"),
        (datasketch.MinHash(num_perm=16, scheme="legacy"), "scheme"),
    ]:
        with pytest.raises(MifyError, match=name):
            from_datasketch([foreign], config)
    a, b = permutations(config)
    own = datasketch.MinHash(num_perm=16, permutations=(a, b + np.uint64(1)), scheme="affine32")
    with pytest.raises(MifyError, match="permutations"):
        from_datasketch([own], config)
    with pytest.raises(MifyError, match="one-permutation"):
        to_datasketch(signatures(["a"], SignatureConfig(scheme="one_permutation")))


@pytest.mark.parametrize("scheme", ["affine32", "affine64"])
def test_stored_signatures_come_back(tmp_path: Path, scheme: str) -> None:
    config = SignatureConfig(num_perm=20, scheme=scheme, seed=9)
    signed = signatures(sample_texts(30), config)
    ids = [f"id{i}" for i in range(30)]
    signed.save(tmp_path / "x.parquet", ids)
    signed.save(tmp_path / "again.parquet", ids)
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    got_ids, got = Signatures.load(tmp_path / "x.parquet", config)
    assert got_ids == ids
    assert got.config == config
    assert np.array_equal(got.values, signed.values)
    assert np.array_equal(got.num_shingles, signed.num_shingles)
    empty = signatures([], config)
    empty.save(tmp_path / "empty.parquet", [])
    assert Signatures.load(tmp_path / "empty.parquet")[1].values.shape == (0, 20)


def test_stored_signatures_of_another_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    config = SignatureConfig(num_perm=20)
    signatures(["a b"], config).save(path, ["a"])
    for changed, name in [
        (replace(config, seed=2), "seed 1 instead of 2"),
        (replace(config, ngram=3), "ngram 5"),
        (replace(config, scheme="affine64"), "scheme 'affine32'"),
        (replace(config, lowercase=False), "lowercase True"),
    ]:
        with pytest.raises(MifyError, match=name):
            Signatures.load(path, changed)
    with pytest.raises(MifyError, match="2 ids for 1"):
        signatures(["a b"], config).save(path, ["a", "b"])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    signatures(sample_texts(10)).save(path, [str(i) for i in range(10)])
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MifyError, match=r"cut\.parquet"):
        Signatures.load(tmp_path / "cut.parquet")
    with pytest.raises(MifyError, match="does not exist"):
        Signatures.load(tmp_path / "none.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "foreign.parquet")
    with pytest.raises(MifyError, match="format ''"):
        Signatures.load(tmp_path / "foreign.parquet")
    table = pq.read_table(path)
    for key, value, message in [
        (b"mify.version", b"2", "version '2'"),
        (b"mify.config", table.schema.metadata[b"mify.config"].replace(b"14.0.0", b"99.0.0"), "99"),
        (b"mify.config", table.schema.metadata[b"mify.config"].replace(b'"ngram"', b'"gram"'), "gram"),
    ]:
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, key: value}), tmp_path / "new.parquet")
        with pytest.raises(MifyError, match=message):
            Signatures.load(tmp_path / "new.parquet")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_perm": 0}, "num_perm is 0"),
        ({"num_perm": 65537}, "num_perm is 65537"),
        ({"ngram": 65}, "ngram is 65"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
        ({"scheme": "murmur"}, "murmur"),
        ({"hash": "md5"}, "md5"),
        ({"scheme": "legacy"}, "legacy"),
    ],
)
def test_bad_configurations_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(MifyError, match=message):
        SignatureConfig(**values)  # type: ignore[arg-type]


def test_bad_inputs_are_named() -> None:
    with pytest.raises(MifyError, match="row 1 is null"):
        signatures(pa.array(["a", None]))
    with pytest.raises(MifyError, match="int64"):
        signatures(pa.array([1, 2]))
    with pytest.raises(MifyError, match="a single text"):
        signatures("a text")
    with pytest.raises(TypeError, match="not NoneType"):
        signatures([None])  # type: ignore[list-item]
    with pytest.raises(MifyError, match="threads is 0"):
        signatures(["a"], threads=0)
