"""Which device is chosen, with every combination of what is there; no test here needs any of them."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tastemaker import devices

KINDS = ("cuda", "mps", "xpu")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, without a launcher's variables."""
    for name in ("LOCAL_RANK", *devices.CHOSEN):
        monkeypatch.delenv(name, raising=False)


def have(monkeypatch: pytest.MonkeyPatch, *kinds: str, count: int = 1) -> None:
    """A machine with these kinds of devices, so many of each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in kinds)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count if "cuda" in kinds else 0)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: count if "xpu" in kinds else 0)


@pytest.mark.parametrize("there", list(product([True, False], repeat=3)))
def test_auto_is_the_first_that_is_there(there: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [kind for kind, found in zip(KINDS, there, strict=True) if found]
    have(monkeypatch, *kinds)
    assert devices.pick("auto") == [*kinds, "cpu"][0]
    assert devices.pick("cpu") == "cpu"
    for kind in KINDS:
        if kind in kinds:
            assert devices.pick(kind) == kind
        else:
            with pytest.raises(
                ValueError, match=rf"^--device {kind} is not there; found: {', '.join([*kinds, 'cpu'])}\."
            ):
                devices.pick(kind)


def test_a_torch_without_xpu_is_one_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "cuda")
    monkeypatch.delattr(torch, "xpu")
    assert devices.pick("auto") == "cuda"
    with pytest.raises(ValueError, match=r"^--device xpu is not there; found: cuda, cpu\.$"):
        devices.pick("xpu")


def test_why_cuda_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"This torch \(\S+\) was built for CPUs only: install one for your GPU"):
        devices.pick("cuda")
    for attribute in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.version, attribute, "1.0")
        with pytest.raises(ValueError, match="built for GPUs, but no driver answers: see `nvidia-smi`"):
            devices.pick("cuda")


def test_why_mps_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    with pytest.raises(ValueError, match="Apple's own processors, and this torch was built for another machine"):
        devices.pick("mps")
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    with pytest.raises(ValueError, match=r"^--device mps is not there; found: cpu\.$"):
        devices.pick("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:1", "CPU", ""])
def test_other_names_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "cuda")
    with pytest.raises(ValueError, match=rf"^--device is '{name}', it must be one of auto, cuda, mps, xpu, cpu\. Of"):
        devices.pick(name)


@pytest.mark.parametrize("kind", devices.SHARED)
def test_every_process_of_a_machine_gets_a_gpu_of_its_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, kind, count=4)
    found = []
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found += [devices.pick("auto"), devices.pick(kind)]
        assert torch.device(found[-1]).index == rank and devices.pick("cpu") == "cpu"
    assert len(set(found)) == 4
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(
        ValueError, match=rf"^--device {kind}: process 4 of this machine has no GPU of its own, for 4 are"
    ):
        devices.pick("auto")


def test_a_process_that_was_given_one_gpu_takes_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cluster's own launcher does it: each process sees one GPU, under number 0."""
    have(monkeypatch, "cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match=r"process 3 .* for 1 is there\. Start as many"):
        devices.pick("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3")
    assert devices.pick("cuda") == "cuda:0"


def test_what_one_has_is_shared_by_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "mps")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.pick("auto") == "mps"
