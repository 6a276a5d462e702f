"""Writers of documents in the formats that are offered, each a row at a time as far as memory goes.

Parquet is what the other commands read. JSON lines hold the same columns; they are for tools that want those.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, cast

from mify.curation.documents import SortedWriter
from mify.errors import MifyError

if TYPE_CHECKING:
    import pyarrow as pa

OutputFormat = Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = ("parquet", "jsonl", "jsonl.gz", "jsonl.zst")


@dataclass(frozen=True)
class OutputOptions:
    """What the output files are.

    Args:
        format: of documents, held-out and rejected ones.
        files: into how many files each is cut: equal ranges of ids, so their rows are those of one file.
    """

    format: OutputFormat = "parquet"
    files: int = 1

    def names(self, kind: str) -> list[str]:
        """The file names of a kind, in the order of the ids."""
        if self.files == 1:
            return [f"{kind}.{self.format}"]
        return [f"{kind}-{part:05}-of-{self.files:05}.{self.format}" for part in range(self.files)]


def output_options(format: str, files: int) -> OutputOptions:
    """The options of these names.

    Raises:
        MifyError: there is no such format, or no file.
    """
    if format not in OUTPUT_FORMATS:
        raise MifyError(f"the output format {format!r} is not known", f"choose from {', '.join(OUTPUT_FORMATS)}")
    if not 1 <= files <= 99999:
        raise MifyError(f"{files} output files cannot be", "use a number from 1 to 99999")
    return OutputOptions(format, files)


_OURS = re.compile(r"(documents|held_out|rejected|clusters)(-\d{5}-of-\d{5})?\.(parquet|jsonl|jsonl\.gz|jsonl\.zst)")


def is_output(name: str) -> bool:
    """Whether a curation writes files of that name."""
    return _OURS.fullmatch(name) is not None


class TableWriter(Protocol):
    """Takes tables of rows in the order of the file."""

    def add(self, table: pa.Table) -> None: ...


@contextmanager
def open_writer(path: Path, form: OutputFormat, stored: str, num_rows: int) -> Iterator[TableWriter]:
    """A writer to `path` of tables with the columns of the format `stored` (`documents.COLUMNS`), sorted by id."""
    if form == "parquet":
        with SortedWriter(path, stored, num_rows) as writer:
            yield writer
    else:
        with path.open("wb") as raw, _packed(raw, form) as file:
            yield _JsonLines(file)


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


@contextmanager
def _packed(raw: BinaryIO, form: OutputFormat) -> Iterator[BinaryIO]:
    if form == "jsonl.gz":
        # Neither a name nor a time in the header: equal rows are equal bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as file:
            yield cast(BinaryIO, file)
    elif form == "jsonl.zst":
        import pyarrow as pa

        with pa.CompressedOutputStream(pa.PythonFile(cast(Any, raw), mode="w"), "zstd") as stream:
            yield cast(BinaryIO, stream)
    else:
        yield raw
