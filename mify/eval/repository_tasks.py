"""Repository-level completion: a line that the file alone does not tell, but other files of its repository do.

Two sources. Held-out documents of one's own: a line is chosen that uses a name which the file does not define and
another held-out file of the same repository does; the prompt is the repository in StarCoder's layout (`<|repo_name|>`,
`<|file_sep|>path`), files that share rare names with what precedes the gap nearest to it. Or CrossCodeEval's files
(Ding et al., arXiv 2310.11248), whose retrieved context stands before the prompt as comments. Scores are exact match
and edit similarity, as there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mify.errors import MifyError
from mify.eval.completers import Sampling
from mify.eval.infilling import eligible
from mify.eval.tasks import DataSource, Item, Judgement, Task, content_hash, read_jsonl
from mify.special_tokens import FILE_SEP, REPO_NAME

if TYPE_CHECKING:
    from mify.curation.documents import Document

_NAME = re.compile(r"[A-Za-z_]\w{3,}")
_DEFINES = re.compile(r"^\s*(?:async\s+def|def|class|func|function|fn|struct|interface|type)\s+([A-Za-z_]\w{3,})", re.M)
MAX_FILES = 4
MAX_CHARACTERS = 6000


def repository_lines(
    documents: Iterable[Document], *, lines: int = 100, lines_per_repository: int = 5, name: str = "repository"
) -> Task:
    """Lines of held-out code that use what another held-out file of the repository defines.

    Args:
        lines: at most so many, with the smallest hashes. lines_per_repository: at most so many from one.

    Raises:
        MifyError: no repository has such a line.
    """
    by_repository: dict[tuple[str, str], list[Document]] = {}
    for document in documents:
        if document.domain == "code" and document.repo:
            by_repository.setdefault((document.source, document.repo), []).append(document)
    chosen: list[tuple[str, Item]] = []
    for files in by_repository.values():
        found = sorted((entry for file in files for entry in _lines_of(file, files)), key=lambda entry: entry[0])
        chosen += found[:lines_per_repository]
    if not chosen:
        raise MifyError(
            "no held-out repository has a line that uses what another of its files defines",
            "hold out whole repositories, of more than one file",
        )
    items = [item for _, item in sorted(chosen, key=lambda entry: entry[0])[:lines]]
    texts = [part for item in items for part in (item.id, item.fields["before"], item.fields["target"])]
    return _task(name, items, DataSource("held-out documents", content_hash(texts), "as the documents"))


def _lines_of(file: Document, files: Sequence[Document]) -> list[tuple[str, Item]]:
    rows = file.text.split("\n")
    own = set(_DEFINES.findall(file.text))
    elsewhere: dict[str, list[Document]] = {}
    for other in files:
        if other.id != file.id:
            for defined in set(_DEFINES.findall(other.text)) - own:
                elsewhere.setdefault(defined, []).append(other)
    found = []
    for number, row in enumerate(rows):
        # The first lines are imports, and a name that stands above needs no other file.
        used = [word for word in _NAME.findall(row) if word in elsewhere]
        above = "\n".join(rows[:number])
        if number < 3 or not used or not eligible(row) or row.lstrip().startswith(("import ", "from ")):
            continue
        if any(len(elsewhere[word]) == 1 and word not in _without_imports(above) for word in used):
            digest = hashlib.sha256(f"repository:{file.id}:{number}".encode()).hexdigest()
            found.append((digest, _item(file, files, rows, number)))
    return found


def _without_imports(text: str) -> str:
    return "\n".join(row for row in text.split("\n") if not row.lstrip().startswith(("import ", "from ")))


def _item(file: Document, files: Sequence[Document], rows: Sequence[str], number: int) -> Item:
    row = rows[number].rstrip()
    indent = len(row) - len(row.lstrip())
    before = "".join(f"{line}\n" for line in rows[:number]) + row[:indent]
    words = set(_NAME.findall(before)) | set(_NAME.findall(row[:indent]))
    others = [other for other in files if other.id != file.id]
    # Those that define most of what is used above stand last, nearest to the gap.
    others.sort(key=lambda other: (len(words & set(_DEFINES.findall(other.text))), other.id))
    fields = {
        "repo": file.repo,
        "files": [(other.path, other.text[:MAX_CHARACTERS]) for other in others[-MAX_FILES:]],
        "path": file.path,
        "before": before,
        "target": row[indent:],
        "language": file.language,
    }
    return Item(f"{file.id[:16]}:{number + 1}", fields)


def _parts(item: Item) -> tuple[tuple[str, str], ...]:
    fields = item.fields
    if "repo" not in fields:
        return ()
    files = ((FILE_SEP, f"{path}\n{text}") for path, text in fields["files"])
    return ((REPO_NAME, fields["repo"]), *files, (FILE_SEP, f"{fields['path']}\n"))


def cross_code_eval(path: str | os.PathLike[str], name: str = "crosscodeeval") -> Task:
    """CrossCodeEval's lines; `path` names one of its line_completion*.jsonl.

    Raises:
        MifyError: a field is missing.
    """
    file = Path(path)
    rows = read_jsonl(file, ("prompt", "groundtruth", "metadata"))
    items = []
    for number, row in enumerate(rows):
        retrieved = row.get("crossfile_context")
        context = str(retrieved.get("text", "")) if isinstance(retrieved, dict) else ""
        fields = {"before": context + row["prompt"], "target": str(row["groundtruth"])}
        items.append(Item(str(row["metadata"].get("task_id", number)), fields))
    return _task(name, items, DataSource.of(file, "Apache-2.0"))


def _task(name: str, items: Sequence[Item], source: DataSource) -> Task:
    return Task(
        name=name,
        items=items,
        source=source,
        sampling=Sampling(max_new_tokens=64, stop=("\n",)),
        prompt=lambda item: (item.fields["before"], None),
        parts=_parts,
        answer=lambda item, completion: completion.split("\n", 1)[0].rstrip(),
        judge=lambda answers: [_judge(item, answer) for item, answer in answers],
        judged_by="exact match of the line; edit similarity beside it",
        metric="exact match",
        canonical=lambda item: item.fields["target"],
    )


def _judge(item: Item, answer: str) -> Judgement:
    target, answer = item.fields["target"].strip(), answer.strip()
    return Judgement(answer == target, figures={"edit similarity": edit_similarity(answer, target)})


def edit_similarity(a: str, b: str) -> float:
    """1 - Levenshtein distance / the longer length; 1 where both are empty."""
    if not a or not b:
        return float(a == b)
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return 1.0 - row[-1] / max(len(a), len(b))
