"""What `mify doctor` concludes from what it finds, and how it reads what `nvidia-smi` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mify import doctor
from mify.hardware import Gpu, cpu, gpu_spec, gpus, parse_nvidia_smi

H200 = Gpu(0, "NVIDIA H200", 143771, "580.159.03", "9.0", 1980, 3201, 700.0)
SMI = "0, NVIDIA H200, 143771, 580.159.03, 9.0, 1980, 3201, 700.00\n"


def test_nvidia_smi_is_read() -> None:
    assert parse_nvidia_smi(SMI) == (H200,)
    odd = parse_nvidia_smi("1, NVIDIA Thing, [N/A], 580.1, 7.5, [N/A], 5001, [Not Supported]\ngarbage\n\n")
    assert odd == (Gpu(1, "NVIDIA Thing", None, "580.1", "7.5", None, 5001, None),)
    assert parse_nvidia_smi("No devices were found\n") == ()
    assert gpu_spec(H200.name).bandwidth == 4.8e12


def test_a_missing_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus.cache_clear()
    assert gpus() == ()
    # A driver that answers with an error is no GPU either.
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    gpus.cache_clear()
    assert gpus() == ()
    tool.write_text(f"#!/bin/sh\necho '{SMI.strip()}'\n")
    gpus.cache_clear()
    assert gpus() == (H200,)
    gpus.cache_clear()


@pytest.mark.parametrize(
    ("torch_cuda", "usable", "state", "text"),
    [("13.0", True, "used", ""), (None, False, "there", "CPU build"), ("13.0", False, "broken", "cannot open it")],
)
def test_a_gpu_is_used_or_said_why_not(torch_cuda: str | None, usable: bool, state: str, text: str) -> None:
    (finding,) = doctor._gpu((H200,), torch_cuda, usable)
    assert finding.state == state
    assert text in finding.why
    assert (finding.remedy == "") == (state == "used")
    assert "NVIDIA H200, 140 GiB" in finding.found


def test_a_full_or_read_only_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Usage:
        free = 10**8

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage)
    work = next(iter(doctor._disk(tmp_path / "not" / "yet")))
    assert (work.state, work.name) == ("broken", "work folder")
    assert "0.1 GB free" in work.found
    assert work.remedy


def test_an_impossible_backend_is_broken_with_the_dispatchers_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIFY_IMPL", "gqa=warp_drive")
    findings = {finding.name: finding for finding in doctor._kernels()}
    assert findings["gqa"].state == "broken"
    assert "warp_drive" in findings["gqa"].why
    monkeypatch.setenv("MIFY_IMPL", "ref")
    findings = {finding.name: finding for finding in doctor._kernels()}
    assert {finding.found for finding in findings.values()} == {"ref"}
    ops = {"gqa", "gqa_decode", "norm", "rope", "glu", "ce", "linear_ce", "fim_pack", "quantize", "gemm"}
    assert set(findings) == ops


def test_a_missing_package_says_what_is_lost_and_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_importable", lambda _module: False)
    monkeypatch.setattr(doctor, "gpus", lambda: (H200,))
    findings = {finding.name: finding for finding in doctor._packages()}
    assert all(finding.state == "absent" and finding.why and finding.remedy for finding in findings.values())
    assert "nvcc" in findings["transformer-engine"].remedy
    # Without a GPU nobody is told to install what would only serve one.
    monkeypatch.setattr(doctor, "gpus", lambda: ())
    findings = {finding.name: finding for finding in doctor._packages()}
    assert findings["flash-attn"].remedy == ""
    assert findings["gguf"].remedy


def test_a_package_whose_parent_is_absent_is_absent() -> None:
    assert not doctor._importable("no_such_package.inner")
    assert doctor._importable("json.decoder")


def test_the_cpu_is_seen() -> None:
    found = cpu()
    assert found.name
    assert found.cores >= 1
    assert found.memory_bytes > 10**8


def test_fp8_says_by_what_it_runs_and_why_not_by_the_rest() -> None:
    found = {finding.name: finding for finding in doctor.diagnose() if finding.part == "FP8"}
    assert set(found) == {"Transformer Engine", "torch's products, fed by mify's kernels", "emulation"}
    assert found["emulation"].found == "recipes block, current, delayed"
    for finding in found.values():
        assert finding.found != "no recipe" or finding.why
