"""Checkpoints that are whole or absent, verified on load, and independent of the world size.

A checkpoint is a folder `step-00000100`:

    dcp/            torch.distributed.checkpoint: `model.<state_dict key>`, `optimizer.<parameter>.<moment>`, `rng.*`
    state.json      step, stream position, ledger, stability history: what is not a tensor
    model.json      the ModelConfig             } so that `mify.load` needs
    tokenizer.json  where the run has one       } nothing but this folder
    lora.json       the adapter's shape, where one is trained: `model.<layer>.lora_A`, `lora_B`
    config.json     the resolved training configuration
    manifest.json   size and SHA-256 of every other file: `format` "mify-checkpoint", `version` 1

It is written under a temporary name, synced and renamed; then the file `latest` in the run folder names it. On load
every file is hashed; a folder that fails is passed over, in favour of the one before, and that is said.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as read_shards
from torch.distributed.checkpoint.state_dict_saver import save as write_shards

from mify.errors import MifyError
from mify.files import atomic_file, read_json, remove_leftovers, sha256_file, sync, write_json

from .parallel import World

FORMAT, VERSION = "mify-checkpoint", 1
FOLDER = "checkpoints"


@dataclass
class Checkpoint:
    """What one holds: tensors by name (written through DCP, sharded or not) and plain values (JSON)."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    documents: dict[str, Any] = field(default_factory=dict)  # file name → JSON value
    files: dict[str, Path] = field(default_factory=dict)  # file name → file to copy


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None, world: World) -> dict[str, Tensor]:
    """Views of everything that training changes, by name: loading into them in place restores the run.

    Moments that AdamW has not made yet (before its first step) are made here, as zeros.
    """
    tensors: dict[str, Tensor] = {f"model.{name}": value.detach() for name, value in model.state_dict().items()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            moments = optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                moments["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            tensors |= {f"optimizer.{name}.{key}": value.detach() for key, value in moments.items()}
    tensors[f"rng.rank{world.rank}.cpu"] = torch.get_rng_state()
    if world.device.type == "cuda":
        tensors[f"rng.rank{world.rank}.cuda"] = torch.cuda.get_rng_state(world.device)
    return tensors


def restore_rng(tensors: Mapping[str, Tensor], world: World) -> None:
    """Sets this rank's generators to the states in `tensors`."""
    if (state := tensors.get(f"rng.rank{world.rank}.cpu")) is not None:
        torch.set_rng_state(state)
    if world.device.type == "cuda" and (state := tensors.get(f"rng.rank{world.rank}.cuda")) is not None:
        torch.cuda.set_rng_state(state, world.device)


class _Writer(FileSystemWriter):
    """Leaves out the random save id and the temporary folder's name: equal states leave equal bytes."""

    def storage_meta(self) -> None:
        return None


class Checkpointer:
    """Saves and finds the checkpoints of one run folder.

    Args:
        run: the run folder.
        keep_last: how many of the newest stay.
        keep_every_steps: checkpoints at multiples of it stay for ever.
        asynchronous: `save` copies the tensors and returns; a thread writes them.
    """

    def __init__(
        self,
        run: Path,
        world: World,
        *,
        keep_last: int = 2,
        keep_every_steps: int | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.run, self.world = run, world
        self.folder = run / FOLDER
        self.keep_last, self.keep_every_steps = keep_last, keep_every_steps
        self.asynchronous = asynchronous
        # The writing thread has a group of its own, so that it never meets the trainer's collectives.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._stager: DefaultStager | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        if world.is_main and self.folder.is_dir():
            remove_leftovers(self.folder)

    def save(self, checkpoint: Checkpoint, before_commit: Callable[[], None] | None = None) -> None:
        """Writes `checkpoint`; on return it is on the disk, or, asynchronously, copied out of the trainer's way.

        Args:
            before_commit: called on rank 0 before the folder gets its name (to sync what the checkpoint counts on).

        Raises:
            MifyError: the disk is full (also from an earlier asynchronous save). The older checkpoints are untouched.
        """
        self.wait()
        if not self.asynchronous:
            self._write(checkpoint, before_commit)
            return
        checkpoint.tensors = self._stage(checkpoint.tensors)

        def write() -> None:
            try:
                self._write(checkpoint, before_commit)
            except BaseException as error:  # noqa: BLE001 (handed to the trainer's thread by wait())
                self._failure = error

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=False)
        self._thread.start()

    def wait(self) -> None:
        """Returns when no save is under way; raises what the last one raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, ascending, good or not."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.is_dir())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def newest(self, *, verify: bool, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Raises:
            MifyError: there are checkpoints and every one is damaged.
        """
        found: Path | None = None
        damaged: list[str] = []
        if self.world.is_main:
            for step in reversed(self.steps()):
                try:
                    check(self.path(step), hashes=verify)
                except MifyError as error:
                    damaged.append(str(error.problem))
                    say(f"checkpoint {self.path(step).name} is damaged and passed over: {error.problem}")
                    continue
                found = self.path(step)
                break
        found, damaged = self.world.broadcast((found, damaged))
        if found is None and damaged:
            raise MifyError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(damaged)}",
                "restore one from a copy, or delete the folder to start from the first step",
            )
        return found

    def _stage(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies into buffers that are kept from save to save: fresh memory costs more in page faults than the copy."""
        if self._stager is None:
            cuda = self.world.device.type == "cuda"
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
                )
            )
        return cast("dict[str, Tensor]", self._stager.stage(tensors))

    def _write(self, checkpoint: Checkpoint, before_commit: Callable[[], None] | None) -> None:
        target = self.path(checkpoint.step)
        temporary = self.folder / f".{target.name}.tmp"
        main = self.world.is_main
        error: BaseException | None = None
        try:
            with _disk_full_named(target), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process: meant so
                if main:
                    shutil.rmtree(temporary, ignore_errors=True)
                    (temporary / "dcp").mkdir(parents=True)
                self._barrier()
                writer = _Writer(temporary / "dcp", sync_files=False, thread_count=1)
                write_shards(
                    checkpoint.tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None
                )
        except BaseException as caught:  # noqa: BLE001 (raised again below, after all ranks have met)
            error = caught
        # Every rank hashes and syncs what it wrote; rank 0 writes the rest and gives the folder its name.
        mine: dict[str, Any] = {}
        if error is None:
            own = [
                p
                for p in (temporary / "dcp").iterdir()
                if p.name.startswith(f"__{self.world.rank}_") or (main and p.name == ".metadata")
            ]
            mine = {f"dcp/{path.name}": _seal(path) for path in own}
        reports = self._gather((mine, repr(error) if error else None))
        failed = [message for _, message in reports if message]
        try:
            if failed:
                raise error or MifyError(f"another rank could not write {target}: {failed[0]}", "see its message")
            if main:
                with _disk_full_named(target):
                    self._commit(checkpoint, temporary, target, [files for files, _ in reports], before_commit)
        finally:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
        self._barrier()

    def _commit(
        self,
        checkpoint: Checkpoint,
        temporary: Path,
        target: Path,
        sealed: list[dict[str, Any]],
        before_commit: Callable[[], None] | None,
    ) -> None:
        files: dict[str, Any] = {name: entry for part in sealed for name, entry in part.items()}
        state = {"format": "mify-training-state", "version": 1, "step": checkpoint.step, **checkpoint.state}
        for name, value in {"state.json": state, **checkpoint.documents}.items():
            write_json(temporary / name, value)
            files[name] = _seal(temporary / name)
        for name, source in checkpoint.files.items():
            shutil.copyfile(source, temporary / name)
            files[name] = _seal(temporary / name)
        write_json(temporary / "manifest.json", {"format": FORMAT, "version": VERSION, "files": files})
        sync(temporary / "dcp")
        sync(temporary)
        if before_commit is not None:
            before_commit()
        if target.exists():  # the same step again, after a rollback or a damaged file
            old = self.folder / f".{target.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
        sync(self.folder)
        with atomic_file(self.run / "latest") as pointer:
            pointer.write_text(f"{FOLDER}/{target.name}\n", encoding="utf-8")
        self._prune()

    def _prune(self) -> None:
        for step in self.steps()[: -self.keep_last]:
            if self.keep_every_steps is None or step % self.keep_every_steps:
                shutil.rmtree(self.path(step))

    def _barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)

    def _gather(self, value: Any) -> list[Any]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._group)
        return values


def check(folder: Path, *, hashes: bool = True) -> dict[str, Any]:
    """Verifies a checkpoint folder against its manifest and returns the manifest.

    Raises:
        MifyError: no manifest, an unknown format or version, a file missing, of another size or another content.
    """
    remedy = "use another checkpoint of the run"
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else manifest
        raise MifyError(f"{folder} is no {FORMAT} of version {VERSION} (found {found})", "use the mify that wrote it")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise MifyError(f"{path} is missing", remedy)
        if path.stat().st_size != entry["bytes"]:
            raise MifyError(f"{path} has {path.stat().st_size} bytes, not {entry['bytes']}", remedy)
        if hashes and sha256_file(path) != entry["sha256"]:
            raise MifyError(f"{path} has changed since it was written (SHA-256 differs)", remedy)
    return manifest


def load_tensors(folder: Path, tensors: dict[str, Tensor], *, together: bool = True) -> None:
    """Reads `folder`'s tensors into `tensors`, in place, whatever world size wrote them.

    Generator states that the folder lacks (it was written by fewer ranks) stay as they are, and so do FP8 scales (it
    was trained without). With `together`, all ranks of the process group must call it; without, this one reads by
    itself.

    Raises:
        MifyError: a tensor is absent or has another shape: the checkpoint is of another model.
    """
    reader = FileSystemReader(folder / "dcp")
    stored = reader.read_metadata().state_dict_metadata
    wanted = {name: value for name, value in tensors.items() if name in stored or not _may_be_absent(name)}
    for name, value in wanted.items():
        size = getattr(stored.get(name), "size", None)
        if size is None or tuple(size) != tuple(value.shape):
            found = "absent" if size is None else f"of shape {tuple(size)}"
            raise MifyError(
                f"{name} is {found} in {folder}, and the model's is {tuple(value.shape)}",
                "use the model configuration that the checkpoint was trained with (its model.json)",
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        read_shards(wanted, storage_reader=reader, no_dist=not (together and dist.is_initialized()))


def _may_be_absent(name: str) -> bool:
    return name.startswith("rng.") or ".fp8_" in name


def load_model(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Reads only the weights of a checkpoint folder into `model` (unsharded)."""
    load_tensors(Path(folder), {f"model.{k}": v for k, v in model.state_dict().items()}, together=False)


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`."""
    state = read_json(folder / "state.json")
    if state.get("format") != "mify-training-state" or state.get("version") != 1:
        raise MifyError(f"{folder / 'state.json'} is of an unknown format", "use the mify that wrote it")
    return state


def _seal(path: Path) -> dict[str, Any]:
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


@contextlib.contextmanager
def _disk_full_named(target: Path) -> Iterator[None]:
    """Turns "no space left", however deep torch has wrapped it, into a `MifyError`."""
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:
        if not _is_disk_full(error):
            raise
        free = shutil.disk_usage(target.parent).free if target.parent.is_dir() else 0
        raise MifyError(
            f"the disk is full: the checkpoint {target} could not be written ({free / 1e6:.0f} MB free); "
            "the checkpoints before it are whole",
            "free some space and run the command again; it goes on from the last checkpoint",
        ) from error


def _is_disk_full(error: BaseException | None) -> bool:
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(error, CheckpointException):
        return any(_is_disk_full(failure[0]) for failure in error.failures.values())
    return _is_disk_full(error.__cause__) or _is_disk_full(error.__context__)
