"""MinHash signatures: how a text becomes a few hundred numbers whose agreement estimates Jaccard similarity.

A text is a set of shingles: its word n-grams (all its words as one shingle where there are fewer than n). Words are
the maximal runs of Python's ``\\w``, each lower-cased code point by code point unless `lowercase` is off; bytes that
are not UTF-8 separate words. For a random permutation π of hash values, the smallest π(h) over the shingles of two
texts agree with probability J = |A ∩ B| / |A ∪ B| (Broder 1997). The share of `num_perm` such minima that agree
estimates J with standard error sqrt(J (1 - J) / num_perm): 0.041 at J 0.7 and 128.

=================  =====================================================================================================
scheme             permutation of a shingle hash h
=================  =====================================================================================================
affine32           a·fmix32(h) + b mod 2^32, a odd (a bijection); datasketch 2.0's default, bit for bit
affine64           a·fmix64(h) + b mod 2^64, a odd; for sets of 10^8 shingles and more, where 32 bits saturate
legacy             ((a·h + b mod 2^64) mod 2^61 - 1) mod 2^32; datasketch before 2.0, bit for bit
one_permutation    a 64-bit mix of h chooses one of num_perm bins by its high half and competes there with its low
                   half; empty bins borrow by optimal densification (Shrivastava 2017). The fastest, whatever
                   num_perm; for texts of few shingles its values are not independent, so the error above does not
                   hold for them
=================  =====================================================================================================

=======  ===============================================================================================================
hash     of a shingle
=======  ===============================================================================================================
fast64   a rolling polynomial over 64-bit word hashes (csrc/text/word_hash.hpp); 32-bit schemes fold its halves
sha1     the first 4 (affine64: 8) bytes of SHA-1 of the words joined by spaces: datasketch's default
xxh32    XXH32 of the same string
=======  ===============================================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError
from mify.files import atomic_file

if TYPE_CHECKING:
    from datasketch import MinHash

    from mify._core import minhash as core


Scheme = Literal["affine32", "affine64", "legacy", "one_permutation"]
ShingleHash = Literal["fast64", "sha1", "xxh32"]
Signature = NDArray[np.uint32] | NDArray[np.uint64]
Text = str | bytes
# A sequence of str or bytes, or a pyarrow Array or ChunkedArray of them (which carry no types).
TextSequence: TypeAlias = Sequence[Text] | Any

FORMAT, VERSION = "signatures", "1"
_MERSENNE_61 = (1 << 61) - 1


@dataclass(frozen=True, slots=True)
class SignatureConfig:
    """Everything a signature depends on besides the text. Signatures of two configurations cannot be compared.

    Args:
        num_perm: values of a signature, 1 to 65536.
        ngram: words of a shingle, 1 to 64.
        lowercase: whether words are lower-cased.
        scheme, hash: see the tables above. `legacy` needs sha1 or xxh32.
        seed: of the permutations: numpy's RandomState(seed), as datasketch draws them. 0 to 2^32 - 1.
    """

    num_perm: int = 128
    ngram: int = 5
    lowercase: bool = True
    scheme: Scheme = "affine32"
    hash: ShingleHash = "fast64"
    seed: int = 1

    def __post_init__(self) -> None:
        choices = {"scheme": ("affine32", "affine64", "legacy", "one_permutation"), "hash": ("fast64", "sha1", "xxh32")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise MifyError(f"{name} {getattr(self, name)!r} is unknown", f"use one of {', '.join(allowed)}")
        for name, low, high in (("num_perm", 1, 65536), ("ngram", 1, 64), ("seed", 0, 2**32 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise MifyError(f"{name} is {value!r}", f"use an integer from {low} to {high}")
        if self.scheme == "legacy" and self.hash == "fast64":
            raise MifyError(
                "scheme legacy does not mix its input, so hash fast64 would bias it", "use hash sha1 or xxh32"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint64 for affine64, otherwise uint32."""
        return np.dtype(np.uint64 if self.scheme == "affine64" else np.uint32)


def permutations(config: SignatureConfig) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The multipliers a and offsets b, (num_perm,) uint64 each, as datasketch draws them; empty for one_permutation."""
    if config.scheme == "one_permutation":
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    generator = np.random.RandomState(config.seed)
    if config.scheme == "legacy":
        pairs = np.array(
            [
                (
                    generator.randint(1, _MERSENNE_61, dtype=np.uint64),
                    generator.randint(0, _MERSENNE_61, dtype=np.uint64),
                )
                for _ in range(config.num_perm)
            ],
            dtype=np.uint64,
        )
        return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    width = 64 if config.scheme == "affine64" else 32
    a = generator.randint(0, 1 << (width - 1), config.num_perm, dtype=config.dtype.type)
    b = generator.randint(0, 1 << width, config.num_perm, dtype=config.dtype.type)
    return a.astype(np.uint64) * np.uint64(2) + np.uint64(1), b.astype(np.uint64)


def core_config(config: SignatureConfig) -> core.SignatureConfig:
    """The configuration as the C++ core takes it."""
    from mify._core import minhash as core

    a, b = permutations(config)
    return core.SignatureConfig(
        ngram=config.ngram,
        lowercase=config.lowercase,
        hash=config.hash,
        scheme=config.scheme,
        num_perm=config.num_perm,
        seed=config.seed,
        a=a,
        b=b,
    )


def as_texts(texts: TextSequence) -> core.Texts:
    """Views of the texts where they lie: UTF-8 of str, bytes, or the buffers of Arrow string and binary arrays."""
    from mify._core import minhash as core

    if isinstance(texts, (str, bytes)):
        raise MifyError("texts is a single text", "pass a sequence of texts")
    if hasattr(texts, "chunks"):
        return core.Texts.join([_arrow_texts(chunk) for chunk in texts.chunks])
    if hasattr(texts, "buffers"):
        return _arrow_texts(texts)
    return core.Texts.from_list(texts)


def _arrow_texts(array: Any) -> core.Texts:
    from mify._core import minhash as core

    kinds = {"string": np.int32, "binary": np.int32, "large_string": np.int64, "large_binary": np.int64}
    kind = kinds.get(str(array.type))
    if kind is None:
        raise MifyError(f"the Arrow array is of type {array.type}", f"cast it to one of {', '.join(kinds)}")
    if array.null_count:
        row = next(i for i, valid in enumerate(array.is_valid()) if not valid.as_py())
        raise MifyError(f"the text in row {row} is null", "drop the row or fill it with an empty string")
    if len(array) == 0:
        return core.Texts.from_list([])
    _, offsets, data = array.buffers()
    item = np.dtype(kind).itemsize
    starts = np.frombuffer(offsets, dtype=kind, count=len(array) + 1, offset=array.offset * item)
    return core.Texts.from_buffers(data if data is not None else b"", starts)


@dataclass(frozen=True, slots=True, eq=False)
class Signatures:
    """Signatures of N texts.

    Args:
        values: (N, num_perm), uint32 or uint64 (`config.dtype`); all ones for a text without a word.
        num_shingles: (N,) uint64: shingles of each text, with repetitions; 0 where it has no word.
        invalid_bytes: (N,) uint64: bytes of each text that are not UTF-8.
        config: what they were made with.
    """

    values: Signature
    num_shingles: NDArray[np.uint64]
    invalid_bytes: NDArray[np.uint64]
    config: SignatureConfig

    def __len__(self) -> int:
        return len(self.values)

    def jaccard(self, i: int, j: int) -> float:
        """The estimated Jaccard similarity of texts i and j; 0 where one has no word."""
        if self.num_shingles[i] == 0 or self.num_shingles[j] == 0:
            return 0.0
        return float(np.count_nonzero(self.values[i] == self.values[j]) / self.config.num_perm)

    def save(self, path: str | os.PathLike[str], ids: Sequence[str]) -> None:
        """Writes them with their ids as Parquet, the configuration in the schema's metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if len(ids) != len(self):
            raise MifyError(f"there are {len(ids)} ids for {len(self)} signatures", "pass one id a signature")
        raw = pa.py_buffer(np.ascontiguousarray(self.values))
        width = self.config.num_perm * self.config.dtype.itemsize
        table = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "signature": pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(self), [None, raw]),
                "num_shingles": pa.array(self.num_shingles),
                "invalid_bytes": pa.array(self.invalid_bytes),
            },
            metadata={"mify.format": FORMAT, "mify.version": VERSION, "mify.config": _header(self.config)},
        )
        # Signatures are random bits: neither a dictionary nor compression makes them smaller.
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="none", use_dictionary=False, write_statistics=False)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], expected: SignatureConfig | None = None
    ) -> tuple[list[str], Signatures]:
        """Reads (ids, signatures). A file of another kind, version or configuration than `expected` raises."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise MifyError(f"{path} does not exist", "check the path") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise MifyError(f"{path} is not a readable Parquet file ({error})", "write the signatures again") from None
        metadata = table.schema.metadata or {}
        kind, version = (metadata.get(key, b"").decode() for key in (b"mify.format", b"mify.version"))
        if (kind, version) != (FORMAT, VERSION):
            found = f"format {kind!r}, version {version!r}"
            raise MifyError(f"{path} has {found}, not {FORMAT!r}, {VERSION!r}", "write the signatures with this mify")
        config = _config_from_header(path, metadata[b"mify.config"].decode())
        if expected is not None and config != expected:
            was, now = asdict(config), asdict(expected)
            changed = ", ".join(f"{key} {was[key]!r} instead of {now[key]!r}" for key in was if was[key] != now[key])
            raise MifyError(f"{path} was made with {changed}", "use that configuration, or write the signatures again")
        column = table.column("signature").combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        data = b"" if len(column) == 0 else column.buffers()[1]
        values = np.frombuffer(data, config.dtype, len(column) * config.num_perm).reshape(len(column), config.num_perm)
        counts = [table.column(name).to_numpy() for name in ("num_shingles", "invalid_bytes")]
        return table.column("id").to_pylist(), cls(values, counts[0], counts[1], config)


def signatures(texts: TextSequence, config: SignatureConfig | None = None, *, threads: int = 1) -> Signatures:
    """Signs every text. The result does not depend on `threads`.

    Raises:
        TypeError: for a text that is neither str nor bytes.
        MifyError: for an Arrow array with a null or of another type.
    """
    from mify._core import minhash as core

    config = config or SignatureConfig()
    views = as_texts(texts)
    values = np.empty((len(views), config.num_perm), config.dtype)
    num_shingles, invalid_bytes = np.empty((2, len(views)), np.uint64)
    core.sign(views, core_config(config), _threads(threads), values, num_shingles, invalid_bytes)
    return Signatures(values, num_shingles, invalid_bytes, config)


def jaccard(x: Text, y: Text, *, ngram: int = 5, lowercase: bool = True) -> float:
    """The exact Jaccard similarity of two texts' shingle sets (as 64-bit hashes); 0 where one has no word."""
    from mify._core import minhash as core

    return core.jaccard(x, y, ngram, lowercase)


def to_datasketch(signed: Signatures) -> list[MinHash]:
    """datasketch `MinHash` objects with these values, permutations and seed.

    With hash sha1 they can go on to be updated by datasketch; otherwise their hashfunc raises, since datasketch hashes
    byte strings and cannot know these shingles' hash.
    """
    from datasketch import MinHash

    config = signed.config
    if config.scheme == "one_permutation":
        raise MifyError("datasketch has no one-permutation hashing", "sign with scheme affine32, affine64 or legacy")
    wide = np.uint32 if config.scheme == "affine32" else np.uint64
    a, b = permutations(config)
    shared = np.array([a, b], dtype=wide)
    hashfunc = None if config.hash == "sha1" else _no_hashfunc
    return [
        MinHash(
            seed=config.seed,
            hashvalues=row.astype(wide),
            permutations=shared,
            scheme=config.scheme,
            hashfunc=hashfunc,
        )
        for row in signed.values
    ]


def from_datasketch(sketches: Sequence[MinHash], config: SignatureConfig) -> Signatures:
    """Signatures from datasketch's, which carry scheme, seed and size but not what was hashed: that `config` says.

    Raises:
        MifyError: where a sketch's scheme, seed, size or permutations are not those of `config`.
    """
    a, b = permutations(config)
    empty = np.iinfo(np.uint32).max if config.scheme != "affine64" else np.iinfo(np.uint64).max
    values = np.empty((len(sketches), config.num_perm), config.dtype)
    for i, sketch in enumerate(sketches):
        found = {"scheme": sketch.scheme, "seed": sketch.seed, "num_perm": len(sketch)}
        for name, value in found.items():
            if value != getattr(config, name):
                raise MifyError(f"sketch {i} has {name} {value!r}, not {getattr(config, name)!r}", "pass its own")
        if not (np.array_equal(sketch.permutations[0], a) and np.array_equal(sketch.permutations[1], b)):
            raise MifyError(f"sketch {i} has permutations of its own", "sketches need those that their seed draws")
        values[i] = sketch.hashvalues
    # datasketch keeps no count of shingles; what matters is whether there were any.
    num_shingles = np.any(values != empty, axis=1).astype(np.uint64)
    return Signatures(values, num_shingles, np.zeros(len(sketches), np.uint64), config)


def _no_hashfunc(_: bytes) -> int:
    raise MifyError("this sketch was made with a shingle hash that datasketch does not have", "sign with hash='sha1'")


def _threads(threads: int) -> int:
    if threads < 1:
        raise MifyError(f"threads is {threads}", "use at least 1")
    return threads


def _header(config: SignatureConfig) -> str:
    from mify._core import minhash as core

    return json.dumps({**asdict(config), "unicode": core.UNICODE_VERSION}, sort_keys=True)


def _config_from_header(path: str | os.PathLike[str], header: str) -> SignatureConfig:
    from mify._core import minhash as core

    stored = json.loads(header)
    unicode_version = stored.pop("unicode", None)
    if unicode_version != core.UNICODE_VERSION:
        raise MifyError(
            f"{path} was tokenized by Unicode {unicode_version}, this mify uses {core.UNICODE_VERSION}",
            "write the signatures again",
        )
    if set(stored) != {field.name for field in fields(SignatureConfig)}:
        raise MifyError(f"{path} has the configuration keys {sorted(stored)}", "write the signatures with this mify")
    return SignatureConfig(**stored)
