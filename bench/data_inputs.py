"""The inputs of `mify bench data`, each built when first needed, and the rows that come of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify.bench.data_corpus import Corpus, build
from mify.bench.rows import Row
from mify.bench.suite import Options
from mify.data.fim import FimConfig
from mify.data.plan import PlanConfig, WindowPlan, plan_window
from mify.data.rows import PackedRows, make_rows
from mify.data.shards import TokenShards, write_shards
from mify.tokenizer import Tokenizer, train_tokenizer

CONTEXT = 8192
SENTINELS = (2, 3, 4)


class Bench:
    """The inputs, built when first needed, and the rows so far."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.rows: list[Row] = []

    @cached_property
    def corpus(self) -> Corpus:
        self.options.say("reading the corpus")
        return build(8_000_000 if self.options.quick else 100_000_000, self.options.seed, self.options.data)

    @cached_property
    def sample(self) -> Corpus:
        return self.corpus.sample(2_000_000 if self.options.quick else 20_000_000)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        self.options.say("training the tokenizer")
        return train_tokenizer(self.corpus.texts, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        return 8_192 if self.options.quick else 65_536

    @cached_property
    def shards(self) -> TokenShards:
        self.options.say("tokenizing the corpus")
        write_shards(self.corpus.documents, self.tokenizer, self.folder / "shards")
        return TokenShards(self.folder / "shards", self.tokenizer)

    @cached_property
    def window(self) -> NDArray[np.int64]:
        """A window of the stream's size: the corpus repeated in shuffled orders."""
        count = 8_192 if self.options.quick else 65_536
        generator = np.random.default_rng(self.options.seed)
        repeats = -(-count // self.shards.num_documents)
        orders = [generator.permutation(self.shards.num_documents) for _ in range(repeats)]
        return np.concatenate(orders)[:count]

    def plan(self, rate: float, epoch: int = 0) -> WindowPlan:
        config = PlanConfig(CONTEXT, self.options.seed, FimConfig(rate, domains=("code", "text", "math")))
        return plan_window(self.shards, self.tokenizer, self.window, config, epoch, 0)

    def some_bins(self, most: int) -> NDArray[np.int64]:
        """The window's first bins."""
        return np.arange(min(most, self.plan(0.25).num_bins))

    def some_rows(self, most: int) -> PackedRows:
        bins = self.some_bins(most)
        return make_rows(self.plan(0.25), bins, self.shards, context=CONTEXT, pad_id=1, sentinels=SENTINELS)

    def row(self, case: str, metric: str, value: float, unit: str, **more: Any) -> None:
        target = self.options.targets.find("data", case, metric)
        repro = self.options.repro(case)
        self.rows.append(Row.measured("data", case, "mify", metric, value, unit, repro=repro, target=target, **more))

    def missing(self, case: str, metric: str, unit: str, why: str) -> None:
        target = self.options.targets.find("data", case, metric)
        repro = self.options.repro(case)
        self.rows.append(Row.not_measured("data", case, "mify", metric, unit, why=why, repro=repro, target=target))

    def against(
        self, case: str, metric: str, unit: str, values: dict[str, float], expected: tuple[str, ...], note: str = ""
    ) -> None:
        """One row for the figure itself, then one for each rival, since each has a target of its own."""
        self.row(case, metric, values["mify"], unit, note=note)
        for rival in expected:
            if rival in values:
                self.row(case, f"{metric}, over {rival}", values["mify"], unit, rival=rival, rival_value=values[rival])
            else:
                self.missing(case, f"{metric}, over {rival}", unit, f"{rival} is not installed")
