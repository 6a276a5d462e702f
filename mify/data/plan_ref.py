"""The plan of a window in plain Python: the readable twin of `csrc/packing/window.cpp`, equal to it in every number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np

from mify.data.fim import FIM_ROOM, FimPiece, plan_fragment
from mify.data.fragments import fragments
from mify.data.packing import best_fit_decreasing
from mify.data.philox import Permutation, Purpose, draw, threshold
from mify.data.plan import PlanConfig, PlanCounts, WindowPlan
from mify.data.shards import TokenShards
from mify.tokenizer import Tokenizer


def plan_window_ref(
    shards: TokenShards, tokenizer: Tokenizer, documents: Sequence[int], config: PlanConfig, epoch: int, window: int
) -> WindowPlan:
    """See `mify.data.plan.plan_window`."""
    fim = config.fim
    table = tokenizer.token_bytes
    counts = {field.name: 0 for field in fields(PlanCounts)}
    pieces: list[tuple[int, int, FimPiece]] = []
    for document in documents:
        ids = shards.document(document).tolist()
        if not ids:
            continue
        may_fim = fim is not None and shards.domain_names[shards.domains[document]] in fim.domains
        key = int(shards.document_ids[document])
        counts["source_tokens"] += len(ids)
        nodes: list[tuple[int, int]] = []
        if shards.nodes is not None and shards.node_offsets is not None:
            own = slice(int(shards.node_offsets[document]), int(shards.node_offsets[document + 1]))
            nodes = [(low, high) for low, high in shards.nodes[own].tolist()]

        def chosen(number: int, key: int = key, may_fim: bool = may_fim) -> bool:
            if fim is None or not may_fim:
                return False
            return draw(config.seed, epoch, key, number, Purpose.FIM)[0] < threshold(fim.rate)

        def capacity(number: int, chosen: Callable[[int], bool] = chosen) -> int:
            return config.context - FIM_ROOM if chosen(number) else config.context

        for number, (start, end, exact) in enumerate(fragments(ids, table, config.context, capacity)):
            piece = None
            if fim is not None and chosen(number):
                if exact:
                    piece = plan_fragment(
                        tokenizer,
                        ids,
                        start,
                        end,
                        config=fim,
                        seed=config.seed,
                        epoch=epoch,
                        document=key,
                        fragment=number,
                        nodes=nodes,
                    )
                if not exact:
                    counts["plain_no_boundary"] += 1
                elif piece is None:
                    counts["plain_no_text"] += 1
                elif piece.length > config.context:
                    counts["plain_no_room"] += 1
                    piece = None
                else:
                    counts["psm" if piece.mode == 1 else "spm"] += 1
            pieces.append((document, number, piece or FimPiece([(start, end)], 0, 0)))
    lengths = [piece.length for _, _, piece in pieces]
    bins = best_fit_decreasing(lengths, config.context, config.segments)
    order = Permutation(len(bins), config.seed, epoch, shards.key, window, Purpose.BIN_ORDER)
    bins = [bins[order(place)] for place in range(len(bins))]
    counts |= {"documents": len(documents), "fragments": len(pieces), "tokens": sum(lengths), "bins": len(bins)}
    counts["padding"] = len(bins) * config.context - counts["tokens"]

    placed = [pieces[number] for numbers in bins for number in numbers]
    source: list[int] = []
    length: list[int] = []
    patches: list[int] = []
    span_starts = [0]
    for document, _, piece in placed:
        base = int(shards.offsets[document])
        for span in piece.spans:
            fresh = len(source) == span_starts[-1]
            if isinstance(span, list):
                if span and (fresh or source[-1] >= 0):
                    source.append(~len(patches))
                    length.append(0)
                if span:
                    length[-1] += len(span)
                    patches.extend(span)
            elif span[0] < span[1]:
                if fresh or source[-1] < 0 or source[-1] + length[-1] != base + span[0]:
                    source.append(base + span[0])
                    length.append(0)
                length[-1] += span[1] - span[0]
        span_starts.append(len(source))
    return WindowPlan(
        bin_starts=np.concatenate([[0], np.cumsum([len(numbers) for numbers in bins])]).astype(np.int64),
        piece_document=np.array([document for document, _, _ in placed], np.int64),
        piece_fragment=np.array([number for _, number, _ in placed], np.int32),
        piece_mode=np.array([piece.mode for _, _, piece in placed], np.uint8),
        piece_middle=np.array([piece.middle_start for _, _, piece in placed], np.int32),
        span_starts=np.array(span_starts, np.int64),
        span_source=np.array(source, np.int64),
        span_length=np.array(length, np.int32),
        patches=np.array(patches, np.uint32),
        counts=PlanCounts(**counts),
    )
