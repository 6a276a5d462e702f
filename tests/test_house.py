"""The rules of the house: arrows between the folders, the links, an import without effects, a face of a dozen names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# What each root folder may import of mify (a prefix match), and nothing else of it.
ALLOWED = {
    "kernels": ("mify.kernels", "mify._core", "mify._cuda"),
    "mify": ("mify",),
    "training": ("mify",),
    "bench": ("mify",),
}
FORBIDDEN = {
    "mify": ("mify.training", "mify.bench"),
    "training": ("mify.bench", "mify.cli"),
    "bench": (),
    "kernels": (),
}


def python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not (Path(folder) / name).is_symlink() and name != "__pycache__"]
        yield from (Path(folder) / name for name in files if name.endswith(".py"))


def imported_modules(path: Path) -> Iterator[tuple[str, bool]]:
    """Yields (module, at module level) of every absolute import; `from mify import x` counts as mify.x too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, id(node) in top
            if node.module == "mify":
                for alias in node.names:
                    yield f"mify.{alias.name}", id(node) in top


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_follow_the_arrows(checkout: Path, folder: str) -> None:
    wrong = []
    files = list(python_files(checkout / folder))
    assert files, f"no Python files in {folder}"
    for path in files:
        in_cli = folder == "mify" and (checkout / "mify" / "cli") in path.parents
        for module, _ in imported_modules(path):
            name = f"{path.relative_to(checkout)}: {module}"
            if module.split(".")[0] in {"kernels", "training", "bench", "csrc", "bindings"}:
                wrong.append(name + " (import it under mify)")
            if within(module, "mify"):
                if not any(within(module, prefix) for prefix in ALLOWED[folder]):
                    wrong.append(name)
                if not in_cli and any(within(module, prefix) for prefix in FORBIDDEN[folder]):
                    wrong.append(name)
    assert not wrong, "\n".join(wrong)


def test_the_command_line_imports_lazily(checkout: Path) -> None:
    light = {"typer", "rich", "mify.errors", "mify.cli", "mify", "__future__"}
    wrong = []
    for path in python_files(checkout / "mify" / "cli"):
        if path.parent.name != "cli":
            continue  # the packages below cli are imported by a command when it runs
        for module, top in imported_modules(path):
            known = module.split(".")[0] in sys.stdlib_module_names or any(within(module, name) for name in light)
            if top and (
                not known or (within(module, "mify") and not within(module, "mify.cli") and module not in light)
            ):
                wrong.append(f"{path.relative_to(checkout)}: {module}")
    assert not wrong, "imported at the top of a command's module:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", ["kernels", "training", "bench"])
def test_links_lead_to_the_root_folders(checkout: Path, name: str) -> None:
    link = checkout / "mify" / name
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links (core.symlinks=false)")
    assert os.readlink(link) == f"../{name}"


def test_csrc_knows_neither_python_nor_torch(checkout: Path) -> None:
    sources = [path for path in (checkout / "csrc").rglob("*") if path.suffix in {".cpp", ".hpp", ".cu", ".cuh"}]
    assert sources
    for path in [*sources, checkout / "bindings" / "cuda.cpp"]:
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text(encoding="utf-8"))
        for header in included:
            assert not header.startswith(("torch/", "ATen/", "c10/")), f"{path.name} includes {header}"
            if path.suffix != ".cpp" or "csrc" in path.parts:
                assert not header.startswith(("Python.h", "pybind11")), f"{path.name} includes {header}"


def test_import_is_quick_and_without_effects() -> None:
    code = (
        "import sys, time; t = time.process_time(); import mify; t = time.process_time() - t\n"
        "heavy = {'torch', 'numpy', 'triton', 'transformers', 'pyarrow', 'mify._core'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint(t)"
    )
    seconds = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    )
    assert seconds < 0.3


def test_the_face_has_at_most_a_dozen_names() -> None:
    import mify

    assert len([name for name in mify.__all__ if not name.startswith("__")]) <= 12
    for name in mify.__all__:
        assert getattr(mify, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mify.nonsense  # noqa: B018


def test_modules_stay_under_400_lines(checkout: Path) -> None:
    long = {
        str(path.relative_to(checkout)): lines
        for folder in ALLOWED
        for path in python_files(checkout / folder)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, long
