"""Words and shingles of the C++ core against Python's re, str.lower and hashlib, on both CPU paths."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import reference_minhash as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from mify._core import minhash as core

# Letters whose lower case has another length in UTF-8 (Ⱥ, K, ẞ, İ), marks that are no word characters, other digits,
# code points outside the first plane, and lone surrogates.
AWKWARD = "aZ_09 \n\t-.éÉßẞİıςΣÄñȺKⒶǅ中字भारतЖѐ٣²\u0301\u3000\u00a0\u200d\ufffd\U0001d400\U00010400\U0001f600"
texts = st.text(st.sampled_from(AWKWARD) | st.characters(codec="utf-8"), max_size=300)
any_bytes = st.binary(max_size=300) | st.lists(
    st.sampled_from([b"a", b" ", b"\x80", b"\xc3", b"\xa9", b"\xe4\xb8\xad", b"\xed\xa0\x80", b"\xf0\x9f", b"\xff"]),
    max_size=200,
).map(b"".join)


def core_words(text: str | bytes) -> list[bytes]:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return [raw[begin:end] for begin, end in core.word_spans(text).tolist()]


def expected_words(text: str | bytes) -> list[bytes]:
    return [word.encode() for word in reference.words(text, lowercase=False)]


@settings(max_examples=100, deadline=None)
@given(texts)
def test_words_are_those_of_python_re(text: str) -> None:
    assert core_words(text) == expected_words(text)


@settings(max_examples=100, deadline=None)
@given(any_bytes)
def test_words_of_bytes_that_are_not_utf8(raw: bytes) -> None:
    assert core_words(raw) == expected_words(raw)


def test_lone_surrogates_separate_words() -> None:
    assert core_words("ab\ud800cd \udfff e") == [b"ab", b"cd", b"e"]


@pytest.mark.skipif(
    unicodedata.unidata_version != core.UNICODE_VERSION, reason=f"tables are of Unicode {core.UNICODE_VERSION}"
)
def test_every_code_point_is_classified_and_lowered_as_python_does() -> None:
    points = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    for begin in range(0, len(points), 4096):
        block = points[begin : begin + 4096]
        text = "-".join(block)
        assert core_words(text) == expected_words(text)
        letters = [character for character in block if character.isalnum()]
        text = " ".join(letters)
        expected = [reference.sha1_64(reference.lower(letter)) for letter in letters]
        assert core.shingle_hashes(text, 1, True, "sha1").tolist() == expected


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 61, 62, 63])
@pytest.mark.parametrize("size", [63, 64, 65, 4094, 4095, 4096, 4097, 8192, 12289])
def test_words_across_block_and_stretch_boundaries(shift: int, size: int) -> None:
    random_ = random.Random(size * 64 + shift)
    text = "x" * shift + "".join(random_.choices("ab é中\U0001d400-", weights=[9, 9, 4, 1, 1, 1, 1], k=size))
    assert core_words(text) == expected_words(text)
    long_word = "x" * shift + "é" * size
    assert core_words(long_word) == [long_word.encode()]


@settings(max_examples=80, deadline=None)
@given(texts | any_bytes, st.integers(1, 8), st.booleans())
def test_shingle_digests_are_those_of_hashlib(text: str | bytes, n: int, lowercase: bool) -> None:
    expected = [reference.sha1_64(shingle) for shingle in reference.shingles(text, n, lowercase)]
    assert core.shingle_hashes(text, n, lowercase, "sha1").tolist() == expected


@settings(max_examples=80, deadline=None)
@given(texts | any_bytes, st.integers(1, 8), st.booleans())
def test_fast_hashes_are_equal_where_shingles_are_and_only_there(text: str | bytes, n: int, lowercase: bool) -> None:
    shingles = reference.shingles(text, n, lowercase)
    hashes = core.shingle_hashes(text, n, lowercase, "fast64").tolist()
    assert len(hashes) == len(shingles)
    assert len(set(zip(shingles, hashes, strict=True))) == len(set(shingles)) == len(set(hashes))


def test_fast_hashes_do_not_depend_on_where_a_word_stands() -> None:
    # Words of every length, ASCII and not, first in the text, last in the text, and far from both ends.
    random_ = random.Random(5)
    for length in [*range(1, 36), 64, 65]:
        for alphabet in ("abcXYZ_019", "abÉ中Ⱥ"):
            word = "".join(random_.choices(alphabet, k=length))
            (alone,) = core.shingle_hashes(word, 1, True, "fast64").tolist()
            padding = "pad " * 1100
            for text in (f"{word} {padding}", f"{padding}{word}", f"{padding}{word} {padding}"):
                hashes = core.shingle_hashes(text, 1, True, "fast64").tolist()
                place = reference.words(text).index(reference.lower(word))
                assert hashes[place] == alone
            assert core.shingle_hashes(reference.lower(word), 1, False, "sha1").tolist() == [
                reference.sha1_64(reference.lower(word))
            ]


def test_underscore_and_delete_do_not_meet() -> None:
    # '_' is hashed as 0x7F where words are lower-cased; 0x7F itself is no word character.
    (a,), (b,) = core.shingle_hashes("a_b", 1, True, "fast64").tolist(), core.shingle_hashes("ab", 1, True, "fast64")
    assert a != b
    assert core_words("a\x7fb") == [b"a", b"b"]


@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1000])
def test_sha1_of_every_padding(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert core.sha1_prefix64(data) == int.from_bytes(hashlib.sha1(data).digest()[:8], "little")


@pytest.mark.parametrize("lowercase", [True, False])
def test_digests_of_shingles_of_every_size(lowercase: bool) -> None:
    # Sizes around SHA-1's block (55 bytes is the longest message of one block) in every order, so that messages of one
    # block, which are hashed in pairs, and longer ones alternate; some words are not ASCII.
    random_ = random.Random(6)
    for n in (1, 2, 3):
        sizes = [random_.choice([1, 2, 8, 15, 16, 17, 18, 24, 27, 28, 53, 54, 55, 56, 57, 64]) for _ in range(800)]
        text = " ".join("".join(random_.choices("aZ_9É" if i % 7 == 0 else "aZ_9", k=k)) for i, k in enumerate(sizes))
        expected = [reference.sha1_64(shingle) for shingle in reference.shingles(text, n, lowercase)]
        assert core.shingle_hashes(text, n, lowercase, "sha1").tolist() == expected


def test_xxh32_against_published_vectors() -> None:
    # From xxHash's own sanity checks: a buffer of bytes from its generator, seed 0.
    buffer, generator = bytearray(), 2654435761
    for _ in range(101):
        buffer.append(generator >> 56 & 0xFF)
        generator = generator * 11400714785074694797 % 2**64
    assert core.xxh32(b"") == 0x02CC5D05
    assert core.xxh32(bytes(buffer[:1])) == 0xCF65B03E
    assert core.xxh32(bytes(buffer[:14])) == 0x1208E7E2
    assert core.xxh32(b"abc") == 0x32D153FF
    assert core.xxh32(b"Nobody inspects the spammish repetition") == 0xE2293B2F


@pytest.mark.parametrize(("n", "hash_"), [(0, "fast64"), (65, "fast64"), (5, "md5")])
def test_bad_shingle_parameters_are_named(n: int, hash_: str) -> None:
    with pytest.raises(ValueError, match="ngram" if hash_ == "fast64" else "md5"):
        core.shingle_hashes("a b", n, True, hash_)


def test_a_text_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="not int"):
        core.Texts.from_list(["a", 3])  # type: ignore[list-item]


def test_a_long_line_without_a_word_break() -> None:
    text = b"x" * (1 << 22)
    assert core.word_spans(text).tolist() == [[0, 1 << 22]]
    assert core.shingle_hashes(text, 5, True, "sha1").tolist() == [
        int.from_bytes(hashlib.sha1(text).digest()[:8], "little")
    ]
    assert len(core.shingle_hashes("中" * (1 << 20), 5, True, "fast64")) == 1


_FINGERPRINT = """
import hashlib, random, sys
import numpy as np
from mify._core import minhash as core
from mify.curation.signatures import SignatureConfig, signatures
random_ = random.Random(3)
texts = []
for size in [0, 1, 5, 63, 64, 65, 500, 4096, 4097, 20000]:
    for alphabet in ("ab _9\\n", "aB é中\\U0001d400-Ⱥ"):
        texts.append("".join(random_.choices(alphabet, k=size)))
texts.append(random_.randbytes(5000))
digest = hashlib.sha256()
for scheme in ("affine32", "affine64", "legacy", "one_permutation"):
    for hash_ in ("fast64", "sha1", "xxh32"):
        if (scheme, hash_) == ("legacy", "fast64"):
            continue
        for num_perm in (1, 31, 128, 255):
            config = SignatureConfig(num_perm=num_perm, scheme=scheme, hash=hash_, seed=7)
            signed = signatures(texts, config)
            digest.update(signed.values.tobytes() + signed.num_shingles.tobytes() + signed.invalid_bytes.tobytes())
for text in texts:
    digest.update(core.word_spans(text).tobytes())
print(core.kernel_name(), digest.hexdigest())
"""


def test_every_cpu_path_gives_the_same_bits() -> None:
    found = {}
    for disabled in ("", "avx512", "avx512,avx2", "avx512,avx2,sha"):
        environment = os.environ | {"MIFY_CPU_DISABLE": disabled}
        done = subprocess.run(
            [sys.executable, "-c", _FINGERPRINT], env=environment, capture_output=True, text=True, check=True
        )
        name, digest = done.stdout.split()
        found[disabled] = (name, digest)
    assert found["avx512,avx2,sha"][0] == "scalar"
    assert len({digest for _, digest in found.values()}) == 1, found


def test_offsets_of_buffers_are_checked() -> None:
    with pytest.raises(ValueError, match=r"offsets\[1\]"):
        core.Texts.from_buffers(b"abcdef", np.array([0, 4, 2], np.int32))
    with pytest.raises(ValueError, match=r"offsets\[0\]"):
        core.Texts.from_buffers(b"abcdef", np.array([0, 7], np.int64))
    with pytest.raises(ValueError, match=r"offsets\[0\]"):
        core.Texts.from_buffers(b"abcdef", np.array([-1, 3], np.int64))
