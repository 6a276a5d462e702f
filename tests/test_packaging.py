"""What `pip install` gives people: the wheel's contents, the sdist, a checkout without symbolic links."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

BUILD = [sys.executable, "-m", "build", "--no-isolation", "-Ccmake.define.MIFY_CUDA=OFF"]


def tracked_copy(checkout: Path, folder: Path, *, links: bool) -> Path:
    """A copy of the tracked files as git would check them out, with or without symbolic links."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        source, target = checkout / name, folder / name
        if not source.is_symlink() and not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            link = str(source.readlink())
            target.symlink_to(link) if links else target.write_text(link)
        else:
            shutil.copy2(source, target)
    return folder


def wheel_names(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def check_contents(names: set[str], checkout: Path) -> None:
    top = {name.split("/")[0] for name in names}
    assert {part for part in top if not part.endswith((".dist-info", ".data"))} == {"mify"}, top
    for root, inside in {
        "mify": "mify",
        "kernels": "mify/kernels",
        "training": "mify/training",
        "bench": "mify/bench",
    }.items():
        tracked = subprocess.run(
            ["git", "ls-files", root], cwd=checkout, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for name in tracked:
            path = checkout / name
            if path.is_symlink() or not path.exists() or name.startswith("bench/results"):
                continue
            assert f"{inside}/{Path(name).relative_to(root).as_posix()}" in names, f"the wheel lacks {name}"
    assert any(name.startswith("mify/_core.") and name.endswith((".so", ".pyd")) for name in names)
    assert "mify/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_wheel_from_a_checkout(checkout: Path, tmp_path: Path, links: bool) -> None:
    source = tracked_copy(checkout, tmp_path / "source", links=links)
    subprocess.run([*BUILD, "--wheel", "--outdir", str(tmp_path / "out"), str(source)], check=True, capture_output=True)
    check_contents(wheel_names(tmp_path / "out"), checkout)


@pytest.mark.slow
def test_wheel_from_the_sdist_installs_and_imports(checkout: Path, tmp_path: Path) -> None:
    source = tracked_copy(checkout, tmp_path / "source", links=True)
    # `build` without --wheel makes the sdist, then the wheel from it.
    subprocess.run([*BUILD, "--outdir", str(tmp_path / "out"), str(source)], check=True, capture_output=True)
    assert list((tmp_path / "out").glob("mify-*.tar.gz"))
    check_contents(wheel_names(tmp_path / "out"), checkout)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -I leaves the editable install of this environment out of the way only if the folder comes first.
    code = (
        f"import sys; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]; "
        f"sys.path.insert(0, {str(site)!r}); import mify, mify.kernels, mify.training, mify.bench, mify._core; "
        f"print(mify.__file__, mify._core.__file__)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.count(str(site)) == 2, out


@pytest.mark.slow
def test_scalar_build_without_x86_files(checkout: Path, tmp_path: Path) -> None:
    """The library links without the files for AVX2, AVX-512 and SHA, as on ARM."""
    source = tracked_copy(checkout, tmp_path / "source", links=True)
    subprocess.run(
        [*BUILD, "--wheel", "-Ccmake.define.MIFY_SIMD=OFF",
         "--outdir", str(tmp_path / "out"), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    with zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    (extension,) = (tmp_path / "site" / "mify").glob("_core.*.so")
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('mify._core', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); print(module.cpu_features())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(extension)], capture_output=True, text=True, check=True
    ).stdout
    assert "True" not in out, out
