"""What is curated: folders of files, JSON lines (.jsonl, .gz, .zst) and Parquet, read in a sorted order.

Every reader yields a `Document`, or a `Rejected` with stage "read" for what is not text: nothing is skipped unseen,
and no file's content stops the run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from mify.curation import documents
from mify.curation.columns import COLUMNS, column, written_language, written_license
from mify.curation.documents import DOMAINS, Document, Rejected
from mify.curation.languages import UNKNOWN, domain_of, is_binary_name, language_of
from mify.curation.licenses import folder_license, is_vendored
from mify.curation.locations import Location, filename, is_url, list_files, opened, stat
from mify.errors import MifyError

STAGE = "read"
# Folders of what tools fetched or made. Hidden ones (.git, .venv, caches), virtual environments and symbolic links are
# left out as well: none of them is the project's own text.
_SKIPPED_FOLDERS = frozenset(["__pycache__", "node_modules"])
_TABLES = (".parquet", *(f"{kind}{packed}" for kind in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst")))


class Limits(NamedTuple):
    """What is too large to be a document.

    Args:
        max_file_bytes: of a file in a folder, or of one record's text.
        max_line_bytes: of a JSON line; a longer one is skipped without being held in memory.
    """

    max_file_bytes: int = 1_000_000
    max_line_bytes: int = 16_000_000


DEFAULT_LIMITS = Limits()


class Piece(NamedTuple):
    """What is read at once: a table, a folder of files, or a single file.

    Args:
        location: where it lies.
        kind: "table", "folder" or "file".
        source: the name of the source that its documents get where they have none of their own.
        num_bytes: as it lies there.
        stamp: changes when the piece does.
    """

    location: Location
    kind: str
    source: str
    num_bytes: int
    stamp: str


def list_pieces(paths: Sequence[Location]) -> list[Piece]:
    """What there is to read, in a fixed order.

    Raises:
        MifyError: a path does not exist or is neither folder nor regular file; a URL that is no table or holds none.
    """
    pieces: list[Piece] = []
    for path in paths:
        if is_url(path):
            tables = [str(path)] if str(path).endswith(_TABLES) else list_files(str(path))
            source = filename(path)
            if not tables or not all(table.endswith(_TABLES) for table in tables):
                raise MifyError(
                    f"{path} is neither a table nor a folder of nothing but tables",
                    f"by URL give {', '.join(_TABLES[:4])} … files",
                )
            pieces += [_table_piece(table, source) for table in tables]
        elif Path(path).is_dir():
            folder = Path(path)
            if found := _table_folder(folder):
                pieces += [_table_piece(table, folder.resolve().name) for table in found]
            else:
                pieces.append(Piece(folder, "folder", "", *_folder_stamp(folder)))
        elif Path(path).is_file() and Path(path).name.endswith(_TABLES):
            pieces.append(_table_piece(Path(path), Path(path).name))
        elif Path(path).is_file():
            found_file = stat(Path(path))
            pieces.append(Piece(Path(path), "file", "", found_file.num_bytes, found_file.stamp))  # type: ignore[union-attr]
        else:
            raise MifyError(f"{path} does not exist or is no regular file", "give folders, .jsonl or .parquet files")
    return pieces


def read_piece(piece: Piece, limits: Limits = DEFAULT_LIMITS) -> Iterator[Document | Rejected]:
    """The documents of a piece.

    Raises:
        MifyError: a table is damaged.
    """
    if piece.kind == "table":
        yield from _read_table(piece.location, piece.source, limits)
    elif piece.kind == "folder":
        yield from read_folder(Path(piece.location), limits)
    else:
        path = Path(piece.location)
        name = path.resolve().parent.name or "root"
        license = folder_license(path.resolve().parent)
        place = _Place(name, name, "", _license_above(path.resolve().parent) if license == UNKNOWN else license)
        yield _read_one(path, place, path.name, limits)


def read_inputs(paths: Sequence[Location], limits: Limits = DEFAULT_LIMITS) -> Iterator[Document | Rejected]:
    """The documents of all paths and URLs, one after the other. Raises as `list_pieces` and `read_piece`."""
    for piece in list_pieces(paths):
        yield from read_piece(piece, limits)


def _table_piece(location: Location, source: str) -> Piece:
    found = stat(location)
    if found is None:
        raise MifyError(f"{location} does not exist or is no regular file", "give folders, .jsonl or .parquet files")
    return Piece(location, "table", source, found.num_bytes, found.stamp)


def _folder_stamp(folder: Path) -> tuple[int, str]:
    """The bytes of a folder's files, and a hash of their names, sizes and times."""
    total, digest = 0, hashlib.sha256()
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_of_tools(name))
        for name in sorted(files):
            try:
                status = os.lstat(os.path.join(root, name))
            except OSError:
                continue  # the reader will say why
            total += status.st_size
            digest.update(
                os.fsencode(f"{os.path.relpath(root, folder)}/{name}\0{status.st_size} {status.st_mtime_ns}\n")
            )
    return total, digest.hexdigest()


def decode(data: bytes) -> str | tuple[str, dict[str, Any]]:
    """Bytes as text, or (reason, evidence) where they hold none. A byte order mark is taken off."""
    if not data.strip():
        return "empty", {"bytes": len(data)}
    if b"\0" in data:
        return "binary", {"nul_at": data.index(b"\0")}
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        return "not UTF-8", {"byte": error.start, "value": f"0x{data[error.start]:02x}"}


def read_folder(root: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Document | Rejected]:
    """Every file of a folder. A folder with `.git` in it is a repository; a file's license is that of the nearest
    license file above it, up to the root of its repository."""
    name = root.resolve().name or "root"
    yield from _folder(root, _Place(name, name, "", _license_above(root.resolve())), limits)


def _license_above(folder: Path) -> str:
    """The nearest license above a folder within its repository, "unknown" where it is in none or not part of it."""
    if (folder / ".git").exists() or not any((parent / ".git").exists() for parent in folder.parents):
        return UNKNOWN
    for below, parent in pairwise((folder, *folder.parents)):
        if _is_of_tools(below.name) or is_vendored(f"{below.name}/") or (below / "pyvenv.cfg").exists():
            return UNKNOWN  # a virtual environment in a repository is not under the repository's license
        if (found := folder_license(parent)) != UNKNOWN or (parent / ".git").exists():
            return found
    return UNKNOWN


def _is_of_tools(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS


class _Place(NamedTuple):
    source: str
    repo: str
    prefix: str
    license: str


def _folder(root: Path, place: _Place, limits: Limits) -> Iterator[Document | Rejected]:
    # A stack of what is still to be read, first on top: recursion would end at a thousand nested folders.
    stack: list[tuple[str, _Place, bool]] = [(os.fspath(root), place, True)]
    while stack:
        location, place, is_folder = stack.pop()
        if not is_folder:
            yield _read_one(Path(location), place, place.prefix, limits)
            continue
        try:
            with os.scandir(location) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            yield _reject(place, place.prefix, "unreadable", {"error": error.strerror or str(error)})
            continue
        names = {entry.name for entry in entries}
        if "pyvenv.cfg" in names:
            continue
        if ".git" in names and place.prefix:
            repo = f"{place.repo}/{place.prefix.rstrip('/')}"
            place = place._replace(repo=repo, prefix="", license=UNKNOWN)
        if (found := folder_license(Path(location))) != UNKNOWN:
            place = place._replace(license=found)
        for entry in reversed(entries):
            path = place.prefix + _clean(entry.name)
            if entry.is_symlink():
                continue
            if entry.is_dir():
                if not _is_of_tools(entry.name):
                    stack.append((entry.path, place._replace(prefix=path + "/"), True))
            elif entry.is_file():
                stack.append((entry.path, place._replace(prefix=path), False))


def _read_one(location: Path, place: _Place, path: str, limits: Limits) -> Document | Rejected:
    if is_binary_name(path):
        return _reject(place, path, "binary", {"by": "name"})
    try:
        size = location.stat().st_size
        if size > limits.max_file_bytes:
            return _reject(place, path, "too large", {"bytes": size, "limit": limits.max_file_bytes})
        data = location.read_bytes()
    except OSError as error:
        return _reject(place, path, "unreadable", {"error": error.strerror or str(error)})
    text = decode(data)
    if not isinstance(text, str):
        return _reject(place, path, *text)
    language = language_of(path, text)
    license = UNKNOWN if is_vendored(path) else place.license
    return Document.create(text, domain_of(language), language, license, place.source, place.repo, path)


def _reject(place: _Place, path: str, reason: str, evidence: Mapping[str, Any]) -> Rejected:
    language = language_of(path)
    document = Document.create("", domain_of(language), language, place.license, place.source, place.repo, path)
    return Rejected.create(document, STAGE, reason, evidence)


def _table_folder(folder: Path) -> list[Path]:
    """The files of a folder that holds nothing but tables (shards of a data set), sorted; [] for any other folder."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return entries if entries and all(path.is_file() and path.name.endswith(_TABLES) for path in entries) else []


def _read_table(path: Location, source: str, limits: Limits) -> Iterator[Document | Rejected]:
    if not filename(path).endswith(".parquet"):
        yield from read_jsonl(path, source, limits)
        return
    form = documents.file_format(path)
    if form == documents.FORMAT:
        yield from documents.read_documents(path)
    elif form:
        raise MifyError(f"{path} holds {form!r}", "give a documents file, a folder, JSON lines or a Parquet file")
    else:
        yield from read_parquet(path, source, limits)


def read_jsonl(path: Location, source: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[Document | Rejected]:
    """JSON lines, one record each, plain, .gz or .zst.

    Raises:
        MifyError: the compressed file is damaged.
    """
    name = filename(path)
    place = _Place(source, name, "", UNKNOWN)
    with unpacked(path) as file:
        for number, line in enumerate(_lines(file, limits.max_line_bytes), start=1):
            where = f"{name}:{number}"
            if isinstance(line, int):
                evidence = {"bytes": line, "limit": limits.max_line_bytes}
                yield _reject(place, where, "too large", evidence)
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield _reject(place, where, "not JSON", {"error": str(error)[:200]})
                continue
            if isinstance(record, dict):
                yield _of_record(record, place, where, limits)
            else:
                yield _reject(place, where, "not JSON", {"error": f"a {type(record).__name__}, not an object"})


def read_parquet(path: Location, source: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[Document | Rejected]:
    """Rows of a Parquet file with a column of text ("text", "content" or "code").

    Raises:
        MifyError: it is no Parquet file, is damaged, or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = filename(path)
    place = _Place(source, name, "", UNKNOWN)
    try:
        with opened(path) as source_file, pq.ParquetFile(source_file) as file:
            known = [key for keys in COLUMNS.values() for key in keys if key in file.schema_arrow.names]
            if not any(column in known for column in COLUMNS["text"]):
                raise MifyError(f"{path} has no column of text", f"name it one of: {', '.join(COLUMNS['text'])}")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=known):
                for record in batch.to_pylist():
                    number += 1
                    yield _of_record(record, place, f"{name}:{number}", limits)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MifyError(f"{path} is damaged ({error})", "write or fetch it again") from None


def _of_record(record: Mapping[str, Any], place: _Place, where: str, limits: Limits) -> Document | Rejected:
    text = column(record, "text")
    path = _clean(str(column(record, "path") or where))
    place = place._replace(
        source=_clean(str(column(record, "source") or place.source)),
        repo=_clean(str(column(record, "repo") or place.repo)),
    )
    if isinstance(text, bytes):
        decoded = decode(text)
        if not isinstance(decoded, str):
            return _reject(place, path, *decoded)
        text = decoded
    if not isinstance(text, str):
        return _reject(place, path, "no text", {"columns": sorted(map(str, record))[:20]})
    if not text.strip():
        return _reject(place, path, "empty", {"characters": len(text)})
    if len(text) > limits.max_file_bytes:
        return _reject(place, path, "too large", {"characters": len(text), "limit": limits.max_file_bytes})
    language = written_language(column(record, "language")) or language_of(path, text)
    domain = column(record, "domain") if column(record, "domain") in DOMAINS else domain_of(language)
    try:
        return Document.create(
            text,
            cast(str, domain),
            language,
            written_license(column(record, "license")),
            place.source,
            place.repo,
            path,
        )
    except UnicodeEncodeError as error:
        return _reject(place, path, "not UTF-8", {"character": error.start, "error": error.reason})


def _clean(path: str) -> str:
    """A name without lone surrogates: file systems allow bytes that are no UTF-8."""
    return path.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def unpacked(path: Location) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its name ends in .gz or .zst."""
    try:
        with opened(path) as packed:
            if filename(path).endswith(".gz"):
                with gzip.open(packed, "rb") as file:
                    yield cast(BinaryIO, file)
            elif filename(path).endswith(".zst"):
                import pyarrow as pa

                with pa.input_stream(pa.PythonFile(packed, mode="r"), compression="zstd") as stream:
                    yield cast(BinaryIO, io.BufferedReader(stream))
            else:
                yield packed
    except (OSError, EOFError, zlib.error) as error:
        raise MifyError(f"{path} could not be read to its end ({error})", "write or fetch it again") from None


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes | int]:
    """Lines, or for one longer than `limit` its length in bytes: it is read in pieces and never held."""
    while line := file.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        length = len(line)
        while piece := file.readline(1 << 20):
            length += len(piece)
            if piece.endswith(b"\n"):
                break
        yield length
