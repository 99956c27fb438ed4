"""The catalogue of GPUs, and what links of theirs carry."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer.adapters.gpu_catalogue import FILE, catalogue
from uellm_deployer.domain.gpus import Catalogue
from uellm_deployer.domain.interconnect import UNKNOWN_ATTACHMENT, LinkRates

from uellm.links import class_rank, known_class, nvlinks
from uellm.rpc.errors import InvalidArgumentError

KEYS = {"name", "aliases", "memory_mib", "memory_gb_s", "fp16_tflops", "nvlinks", "nvlink_gb_s", "pcie", "pcie_lanes"}


def test_every_entry_is_whole_and_says_where_it_is_from():
    entries = tomllib.loads(FILE.read_text())["gpu"]
    assert len(entries) == len(catalogue().models) > 24
    for entry in entries:
        assert set(entry) - KEYS == {"source"}, entry["name"]
        assert ("nvlinks" in entry) == ("nvlink_gb_s" in entry), entry["name"]
        model = catalogue().find(entry["name"])
        assert model is not None
        assert model.name == entry["name"]
        # Plausible: no digit is missing or too many. Every GPU computes more than it can read.
        assert 8e9 < model.memory_bytes < 400e9
        assert 1e11 < model.memory_bandwidth < model.flops < 1e16
        assert model.attachment.pcie_bandwidth > 0
        assert model.attachment.nvlink_bandwidth > 0


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (["NVIDIA H100 80GB HBM3", "H100", "h100 sxm", "H100-SXM5-80GB", "h100_sxm"], "NVIDIA H100 80GB HBM3"),
        (["NVIDIA H100 PCIe", "H100 pcie"], "NVIDIA H100 PCIe"),
        (["A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", "A100 80GB", "a100"], "NVIDIA A100-SXM4-80GB"),
        (["A100-SXM4-40GB", "A100 40GB"], "NVIDIA A100-SXM4-40GB"),
        (["NVIDIA A100 80GB PCIe", "A100-PCIE-80GB"], "NVIDIA A100 80GB PCIe"),
        (["Tesla T4", "NVIDIA T4", "T4"], "Tesla T4"),
        (["Tesla V100-SXM2-16GB", "V100 16GB"], "Tesla V100-SXM2-16GB"),
        (["GeForce RTX 4090", "RTX 4090", "rtx4090", "4090"], "NVIDIA GeForce RTX 4090"),
        (["NVIDIA RTX A6000", "A6000"], "NVIDIA RTX A6000"),
        (["RTX 6000 Ada"], "NVIDIA RTX 6000 Ada Generation"),
        (["GTX1080Ti"], "NVIDIA GeForce GTX 1080 Ti"),
    ],
)
def test_names_as_people_and_drivers_write_them(names, model):
    assert {catalogue().get(name, "-").name for name in names} == {model}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("H1000", "NVIDIA H100 80GB HBM3"),
        ("RTX 4080", "RTX 4090"),
        ("A100 60GB", "A100-SXM4-80GB"),
        ("RTX", "RTX A6000"),
    ],
)
def test_an_unknown_gpu_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(InvalidArgumentError, match="did you mean") as refused:
        catalogue().get(name, "devices[3].model")
    (violation,) = refused.value.violations
    assert violation.field == "devices[3].model"
    assert nearest in violation.description


@pytest.mark.parametrize("name", ["", "NVIDIA", "Radeon Instinct", "日本"])
def test_what_is_like_nothing_is_refused_plainly(name):
    with pytest.raises(InvalidArgumentError, match="YAML"):
        catalogue().get(name, "gpu_model")


def test_two_gpus_do_not_share_a_name():
    one, other, *_ = catalogue().models
    with pytest.raises(ValueError, match=other.name):
        Catalogue([(one, ()), (other, (one.name.lower(),))])


@pytest.mark.parametrize(
    ("gpu", "link_class", "gigabytes"),
    [
        ("V100", "NV6", 150),
        ("A100", "NV12", 300),
        ("H100", "NV18", 450),
        ("B200", "NV18", 900),
        ("A40", "NV4", 56.25),
        ("V100", "PIX", 16),
        ("A100", "PHB", 32),
        ("H100", "PXB", 64),
    ],
)
def test_bandwidth_by_class_and_generation(gpu, link_class, gigabytes):
    """NVIDIA's totals by product; PCIe to 2 %, for its line code."""
    attachment = catalogue().get(gpu, "-").attachment
    bandwidth, assumed = LinkRates().of(link_class, attachment, attachment)
    assert (bandwidth, assumed) == (pytest.approx(gigabytes * 1e9, rel=0.02), True)


def test_the_slower_end_decides_and_measurements_beat_defaults():
    fast, slow = (catalogue().get(name, "-").attachment for name in ("H100", "T4"))
    assert LinkRates().of("PHB", fast, slow) == LinkRates().of("PHB", slow, slow)
    measured = LinkRates({"NV": 20e9, "PHB": 11e9, "NV2": 47e9})
    assert measured.of("PHB", fast, slow) == (11e9, False)
    assert measured.of("NV4", fast, fast) == (80e9, False)
    assert measured.of("NV2", fast, fast) == (47e9, False)
    assert measured.of("PIX", fast, fast)[1]


@given(st.text(max_size=8))
def test_classes_are_nvidia_smis(text):
    if known_class(text):
        assert text in ("PIX", "PXB", "PHB", "NODE", "SYS") or text == f"NV{nvlinks(text)}"
        assert LinkRates().of(text, UNKNOWN_ATTACHMENT, UNKNOWN_ATTACHMENT)[0] > 0
    else:
        assert nvlinks(text) == 0


def test_classes_from_near_to_far():
    classes = ["NV18", "NV4", "NV1", "PIX", "PXB", "PHB", "NODE", "SYS"]
    assert all(known_class(one) for one in classes)
    assert sorted(set(classes), key=class_rank) == classes
    assert not any(known_class(one) for one in ("SOC", "NV0", "NV01", "X", "nv4", "NV٤", ""))
