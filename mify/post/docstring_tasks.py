"""Conversations made of real code: what a function's docstring says is asked, the function is the answer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mify.curation.documents import Document


@dataclass(frozen=True, slots=True)
class DocstringTask:
    """The function `answer`, its docstring taken out, and the question that its docstring makes; `id` is its place."""

    id: str
    question: str
    answer: str

    def to_dict(self) -> dict[str, Any]:
        """As a line of conversations."""
        messages = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]
        return {"id": self.id, "messages": messages}


def docstring_tasks(documents: Iterable[Document], *, max_answer: int = 300) -> Iterator[DocstringTask]:
    """The short top-level functions of Python documents that say in a sentence what they do, each question once.

    Args:
        max_answer: characters of the function at most.
    """
    seen: set[str] = set()
    for document in documents:
        if document.domain != "code" or document.language != "python":
            continue
        try:
            tree = ast.parse(document.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in tree.body:
            task = _task(node, document) if isinstance(node, ast.FunctionDef) else None
            if task is not None and len(task.answer) <= max_answer and task.question not in seen:
                seen.add(task.question)
                yield task


def _task(node: ast.FunctionDef, document: Document) -> DocstringTask | None:
    text = ast.get_docstring(node)
    if not text or node.decorator_list or len(node.body) < 2:
        return None
    sentence = re.split(r"(?<=[.!?])\s|\n\s*\n", text.strip())[0].strip()
    sentence = " ".join(sentence.split())
    if not 20 <= len(sentence) <= 160 or not sentence.isascii():
        return None
    header = f"def {node.name}({ast.unparse(node.args)})"
    answer = ast.unparse(ast.FunctionDef(**{**dict(ast.iter_fields(node)), "body": node.body[1:]}, lineno=1))
    return DocstringTask(f"{document.id[:16]}:{node.lineno}", f"{header}\n{sentence}", answer)
