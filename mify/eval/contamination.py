"""Which items of a benchmark stand in the training corpus, and what the score is without them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.eval.records import read_records
from mify.eval.tasks import Task

if TYPE_CHECKING:
    from mify.curation.documents import Document

MAX_EXAMPLES = 20


def contamination(task: Task, training: Iterable[Document], result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Looks for the items' texts (problem and solution) in the training documents, by word 10-grams.

    Args:
        result: the task's result, whose verdicts are in `out`.

    Returns:
        {"method", "documents", "items", "contaminated", "found": [{"item", "document", "text"}, …], "score_without"},
        the last None where nothing is left.
    """
    from mify.curation.decontamination import Benchmark, NgramIndex

    assert task.texts is not None
    texts = tuple((item.id, text) for item in task.items[: result["items"]] for text in task.texts(item) if text)
    index = NgramIndex([Benchmark(task.name, texts)])
    found: dict[str, dict[str, str]] = {}
    documents = 0
    for document in training:
        documents += 1
        for span in index.match(document.text):
            found.setdefault(
                span.task,
                {"item": span.task, "document": document.id, "where": document.path, "text": span.text[:200]},
            )
    passed: dict[str, list[bool]] = {}
    for record in read_records(out / f"{task.name}.verdicts.jsonl", "verdicts"):
        if record["id"] not in found:
            passed.setdefault(record["id"], []).append(record["status"] == "passed")
    rates = [sum(values) / len(values) for values in passed.values()]
    return {
        "method": f"word {index.ngram}-grams of problem and solution, as in curation",
        "documents": documents,
        "items": result["items"],
        "contaminated": len(found),
        "found": [found[name] for name in sorted(found)][:MAX_EXAMPLES],
        "score_without": sum(rates) / len(rates) if rates else None,
    }
