"""A corpus that the tests of the sharded curation share: families of similar texts, copies, rejects of all kinds."""

from __future__ import annotations

import random

from mify.curation.config import CurationConfig, DecontaminationRules, LanguageRules, NearDuplicateRules
from mify.curation.documents import Document, Rejected
from mify.curation.licenses import LicensePolicy
from mify.curation.quality import OpenCoderPythonRules, ProseRules, QualityRules, StarCoder2Rules

NAMES = [f"name{i}" for i in range(300)]

# Only what this corpus is about: duplicates. The stages before them have tests of their own.
OPEN = CurationConfig(
    license=LicensePolicy(unknown="accept"),
    language=LanguageRules(by_content=False, unknown="accept"),
    reject_generated=False,
    quality=QualityRules(
        StarCoder2Rules(enabled=False), OpenCoderPythonRules(enabled=False), ProseRules(enabled=False)
    ),
    decontamination=DecontaminationRules(benchmarks=()),
    near_duplicates=NearDuplicateRules(),
)


def make(text: str, path: str, **changes: str) -> Document:
    fields = {"domain": "text", "language": "text", "license": "MIT", "source": "web", "repo": "r", **changes}
    return Document.create(text, path=path, **fields)


def families(bases: int, copies: int, seed: int, words: int = 80) -> list[Document]:
    """Random texts and changed copies of them, exact ones among them."""
    random_ = random.Random(seed)
    texts = [random_.choices(NAMES, k=random_.randrange(words // 2, words)) for _ in range(bases)]
    for _ in range(copies):
        changed = list(random_.choice(texts))
        for _ in range(random_.choice([0, 0, 1, 2, 3, 5])):
            changed[random_.randrange(len(changed))] = random_.choice(NAMES).upper()
        texts.append(changed)
    return [make(" ".join(text), f"{seed}/{place}.txt", repo=f"r{place % 7}") for place, text in enumerate(texts)]


def mixed(seed: int = 1) -> tuple[list[Document | Rejected], list[Document]]:
    """(for training, held out): families on both sides, documents that come twice, rejects of the reader."""
    train: list[Document | Rejected] = list(families(60, 180, seed))
    held_out = families(10, 20, seed + 100)
    held_out += [make(train[3].text, "held/copy.txt"), make(train[4].text + " and more", "held/near.txt")]  # type: ignore[union-attr]
    train += [train[5], train[6], train[5]]
    train += [
        Rejected.create(make("", f"{i}.bin", license="unknown"), "read", "binary", {"nul_at": i}) for i in range(9)
    ]
    train += [make("", "empty.txt"), make("word", "one.txt"), make("word", "two.txt"), make("", "empty2.txt")]
    train += [make(f"mail jane{i}@uni-bonn.de about {' '.join(NAMES[i : i + 20])}", f"{i}.mail") for i in range(5)]
    return train, held_out
