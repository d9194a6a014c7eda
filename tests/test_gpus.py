"""Accelerators: every row as its facts have it, found by the names that people type and devices report."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from support import DATA, ROOT

import gptcalc.gpus as gpus_module
from gptcalc.errors import UnknownNameError
from gptcalc.gpus import Gpu, find_gpu, gpu_names, gpu_of_device, gpus, need_gpu, search_gpus

FACTS = json.loads((DATA / "facts_gpus.json").read_text(encoding="utf-8"), parse_float=Decimal)
#: torch's totals that were found since, in MiB, in what YOLO and out-of-memory messages print.
FOUND = {
    "v100-sxm-32g": 32494,
    "titan-rtx": 24212,
    "rtx-2080-ti": 11019,
    "a100-sxm-40g": 40514,
    "a100-pcie-80g": 81154,
    "rtx-3070": 7842,
    "rtx-3080-10g": 10002,
    "rtx-3080-ti": 12054,
    "rtx-a4000": 16117,
    "rtx-4070": 12002,
    "rtx-4080-super": 15944,
    "rtx-6000-ada": 48539,
    "l4": 22563,
    "rtx-5080": 15840,
    "rtx-5090": 32109,
}
SLUGS = {gpu.name: gpu.slug for gpu in gpus()}


def with_found(fact: dict[str, Any]) -> dict[str, Any]:
    """A row of the facts, with what was found since."""
    torch = FOUND.get(SLUGS.get(fact["name"], ""))
    if torch is None:
        return fact
    assert fact["memory_mib_torch"] is None
    usable = round(Decimal(torch) / 1024, 2)
    return fact | {
        "memory_mib_torch": torch,
        "memory_gib_usable": usable,
        "source_keys": list(dict.fromkeys([*fact["source_keys"], "TORCH"])),
    }


FACTS["rows"] = [with_found(row) for row in FACTS["rows"]]
BY_NAME = {gpu.name: gpu for gpu in gpus()}
GIB = 2**30
each_fact = pytest.mark.parametrize("fact", FACTS["rows"], ids=[fact["name"] for fact in FACTS["rows"]])
each_gpu = pytest.mark.parametrize("gpu", gpus(), ids=[gpu.slug for gpu in gpus()])


def scaled(amount: Decimal | int | None, unit: int) -> Fraction | None:
    """`amount` in base units, exactly."""
    return None if amount is None else Fraction(amount) * unit


def test_rows_are_those_of_the_facts() -> None:
    """All ninety accelerators are there, each once, and no other."""
    assert len(gpus()) == 90
    assert Counter(fact["name"] for fact in FACTS["rows"]) == Counter(gpu.name for gpu in gpus())


@each_fact
def test_row_has_the_values_of_its_facts(fact: dict[str, Any]) -> None:
    """Every published value stands in the row as it was found, and what was not found is not there."""
    gpu = BY_NAME[fact["name"]]
    peaks = {"fp32": fact["fp32_tflops"]}
    peaks |= {dtype: fact[f"{dtype}_tflops_dense"] for dtype in ("tf32", "fp16", "bf16", "fp8")}
    cores = re.search(r"\((\d+)-core GPU\)", fact["name"])

    assert (fact["vendor"], fact["arch"], fact["compute_capability"]) == (gpu.vendor, gpu.arch, gpu.compute_capability)
    assert fact["memory_gb_marketing"] == gpu.memory_gb
    assert (fact["memory_mib_driver"], fact["memory_mib_torch"]) == (gpu.memory_driver_mib, gpu.memory_torch_mib)
    assert fact["bandwidth_gb_s"] == gpu.bandwidth_gb_s
    assert {dtype: peak for dtype, peak in peaks.items() if peak is not None} == gpu.dense_tflops
    assert (fact["l2_mib"], fact["interconnect_gb_s_bidir"]) == (gpu.l2_mib, gpu.link_gb_s)
    assert fact["tdp_w"] == gpu.tdp_w
    assert (int(cores[1]) if cores else fact["sm_or_cu"]) == gpu.units
    assert (tuple(fact["source_keys"]), fact["confidence"]) == (gpu.source_keys, gpu.confidence)
    assert fact["note"] == gpu.note


@each_gpu
def test_what_torch_reports_is_in_order(gpu: Gpu) -> None:
    """What was seen of torch's total: the least below the usual figure, the most above it and at most the driver's."""
    least, usual, most = gpu.memory_torch_least_mib, gpu.memory_torch_mib, gpu.memory_torch_most_mib

    assert least is None or least < usual
    assert most is None or usual < most
    assert gpu.memory_driver_mib is None or (most or usual or 0) <= gpu.memory_driver_mib


@each_fact
def test_amounts_are_exact_in_base_units(fact: dict[str, Any]) -> None:
    """Bytes and rates are the published decimals times their unit, with no rounding in between."""
    gpu = BY_NAME[fact["name"]]

    assert scaled(fact["memory_gb_marketing"], 10**9) == gpu.memory_marketing_bytes
    assert scaled(fact["memory_mib_driver"], 2**20) == gpu.memory_driver_bytes
    assert scaled(fact["memory_mib_torch"], 2**20) == gpu.memory_torch_bytes
    assert scaled(fact["bandwidth_gb_s"], 10**9) == gpu.bandwidth
    assert scaled(fact["l2_mib"], 2**20) == gpu.l2_bytes
    assert scaled(fact["interconnect_gb_s_bidir"], 10**9) == gpu.link
    assert scaled(fact["fp32_tflops"], 10**12) == gpu.peak("fp32")
    assert scaled(fact["bf16_tflops_dense"], 10**12) == gpu.peak("bf16")


def test_common_parts_are_few_and_of_every_size() -> None:
    """Consumer cards of 8, 12, 16, 24 and 32 GB are among the common parts, and so is an accelerator of each size."""
    common = {gpu.slug: gpu for gpu in gpus() if gpu.common}
    cards = {gpu.memory_gb for gpu in common.values() if gpu.name.startswith("GeForce")}

    assert len(common) <= 20
    assert cards == {8, 12, 16, 24, 32}
    assert {"t4", "a100-sxm-40g", "a100-sxm-80g", "h100-sxm", "h200-sxm", "b200", "mi300x"} <= set(common)


@each_fact
def test_usable_memory_is_what_torch_or_the_driver_reports(fact: dict[str, Any]) -> None:
    """The facts' usable GiB are torch's total, or the driver's where torch's is not known."""
    gpu = BY_NAME[fact["name"]]
    usable = gpu.memory_torch_bytes or gpu.memory_driver_bytes

    assert fact["memory_gib_usable"] == (usable and round(Decimal(usable) / GIB, 2))


def test_fractions_survive() -> None:
    """5.5 MiB of L2 and 13.45 TFLOP/s are whole numbers of bytes and FLOPs."""
    turing = need_gpu("rtx-2080-ti")

    assert turing.l2_bytes == 5_767_168
    assert turing.peak("fp32") == 13_450_000_000_000
    assert turing.peak("fp8") is None


def test_sources_resolve() -> None:
    """Every source key of a row has its text, every text is used, and both are those of the facts."""
    texts = tomllib.loads((ROOT / "presets" / "gpus" / "sources.toml").read_text(encoding="utf-8"))["sources"]

    assert texts == FACTS["sources"]
    assert set(texts) == {key for gpu in gpus() for key in gpu.source_keys}
    assert {gpu.slug for gpu in gpus() if not gpu.sources} == set()
    assert FACTS["sources"]["SMI"] in need_gpu("h200").sources


def test_names_are_unique_lower_case_words() -> None:
    """No two accelerators share a slug or an alias, and a shell needs no quotes for any."""
    names = [name for gpu in gpus() for name in (gpu.slug, *gpu.aliases)]

    assert {name: times for name, times in Counter(names).items() if times > 1} == {}
    assert [name for name in names if not re.fullmatch(r"[a-z0-9-]+", name)] == []
    assert sorted(names) == sorted(gpu_names())


@each_gpu
def test_found_by_every_name(gpu: Gpu) -> None:
    """An accelerator is found by its slug and its aliases in any case of letters."""
    assert {gpu.slug} == {need_gpu(name.upper()).slug for name in (gpu.slug, *gpu.aliases)}


@pytest.mark.parametrize(
    ("written", "slug"),
    [
        ("RTX 4090", "rtx-4090"),
        ("rtx_4090", "rtx-4090"),
        ("GeForce RTX 4090 24 GB", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("A100 80GB", "a100-sxm-80g"),
        ("A100-SXM4-80GB", "a100-sxm-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("Tesla T4", "t4"),
        ("t4 16gb", "t4"),
        ("V100 32GB", "v100-sxm-32g"),
        ("AMD Instinct MI300X", "mi300x"),
        ("m3 max 40c", "m3-max-40c"),
        ("TPU v5p", "tpu-v5p"),
    ],
)
def test_found_as_people_write_it(written: str, slug: str) -> None:
    """Case, spaces, the maker's words and the memory behind a name do not count."""
    found = find_gpu(written)

    assert found is not None
    assert slug == found.slug


@each_gpu
def test_found_by_what_its_device_reports(gpu: Gpu) -> None:
    """The full name and each device name mean the row, but for a name that two rows share."""
    for name in (gpu.name, *gpu.device_names):
        expected = None if name == "Apple M3 Max" else gpu
        assert expected == find_gpu(name)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "geforce",
        "NVIDIA",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H200 MIG 1g.18gb",
        "RTX 4090 48GB",
        "m3 max",
    ],
)
def test_another_name_means_none(written: str) -> None:
    """A maker, a laptop's part, a slice, another memory and what two parts are called mean no accelerator."""
    assert find_gpu(written) is None


def test_spelling_tells_parts_apart() -> None:
    """No two accelerators have names that differ in nothing but case, spaces and the maker's words."""
    keys = {(gpus_module._key(name), gpu.slug) for gpu in gpus() for name in (gpu.slug, *gpu.aliases)}

    assert {key: times for key, times in Counter(key for key, _ in keys).items() if times > 1} == {}


@pytest.mark.parametrize(
    ("vendor", "text", "slugs"),
    [
        ("amd", "7900", ["rx-7900-xtx"]),
        (None, "geforce 12gb", ["rtx-3060-12g"]),
        (None, "gb206 BLACKWELL 16gb", ["rtx-5060-ti-16g"]),
        ("Google", None, ["tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7x"]),
    ],
)
def test_a_search_finds_all_words_of_a_vendor(vendor: str | None, text: str | None, slugs: list[str]) -> None:
    """Each word stands in a name, the architecture or the note, in any case of letters."""
    assert slugs == [gpu.slug for gpu in search_gpus(vendor, text)]


@pytest.mark.parametrize(
    ("alias", "slug"),
    [
        ("h100", "h100-sxm"),
        ("h100-80g", "h100-sxm"),
        ("h200", "h200-sxm"),
        ("a100-80g", "a100-sxm-80g"),
        ("4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
    ],
)
def test_popular_aliases(alias: str, slug: str) -> None:
    """A bare name means the part that most people mean by it."""
    assert slug == need_gpu(alias).slug


@pytest.mark.parametrize(("name", "nearest"), [("h1000", "h100"), ("m3-max", "m3-max-40c"), ("rtx-4091", "rtx-4090")])
def test_unknown_name_says_the_nearest(name: str, nearest: str) -> None:
    """An error quotes what was read and names what is near it."""
    with pytest.raises(UnknownNameError) as raised:
        need_gpu(name)

    assert str(raised.value).startswith(f"GPU: read '{name}'; nearest: ")
    assert nearest in re.split("[:,] ", str(raised.value))


def test_unknown_name_near_to_none() -> None:
    """Where nothing is near, the error says how many accelerators there are."""
    with pytest.raises(UnknownNameError, match=r"^GPU: read '€€€'; 90 names are allowed$"):
        need_gpu("€€€")


@each_gpu
def test_found_by_what_it_reports(gpu: Gpu) -> None:
    """Each device name with the row's own memory and units leads back to the row, whatever the case and the spaces."""
    memory = gpu.memory_torch_bytes or gpu.memory_driver_bytes or gpu.memory_gb * GIB
    for device_name in gpu.device_names:
        for written in (device_name, f"  {device_name.upper().replace(' ', '   ')} "):
            assert gpu == gpu_of_device(written, memory, gpu.units)


@pytest.mark.parametrize(
    ("device_name", "slug"),
    [
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40g"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80g"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40g"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16g"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GH200 480GB", "gh200-96g"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD Instinct MI250X", "mi250x-gcd"),
    ],
)
def test_device_name_alone_is_enough(device_name: str, slug: str) -> None:
    """The name that a driver prints is one part's; GH200's counts the memory of its CPU, MI250X's means one die."""
    gpu = gpu_of_device(device_name)

    assert gpu is not None
    assert slug == gpu.slug


def test_one_device_name_is_shared() -> None:
    """Of all device names, two rows have only Apple M3 Max in common, and none is there twice in another spelling."""
    names = Counter(" ".join(name.lower().split()) for gpu in gpus() for name in gpu.device_names)

    assert {name: times for name, times in names.items() if times > 1} == {"apple m3 max": 2}


@pytest.mark.parametrize("device_name", ["", "H200", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_another_name_is_another_part(device_name: str) -> None:
    """A slice or a laptop's part has a name of its own, and no row stands in for it."""
    assert gpu_of_device(device_name) is None


@pytest.mark.parametrize(
    ("gib", "units", "slug"),
    [
        (None, None, None),
        (None, 40, "m3-max-40c"),
        (None, 30, "m3-max-30c"),
        (None, 10, None),
        (128, None, "m3-max-40c"),
        (96, None, "m3-max-30c"),
        (64, None, None),
        (64, 40, "m3-max-40c"),
        (36, 30, "m3-max-30c"),
        (96, 40, "m3-max-40c"),
        (192, 40, None),
    ],
)
def test_parts_of_one_name_are_told_apart(gib: int | None, units: int | None, slug: str | None) -> None:
    """Two chips are an Apple M3 Max: cores decide, then memory, of which a machine may have less than the most."""
    gpu = gpu_of_device("Apple M3 Max", gib and gib * GIB, units)

    assert slug == (gpu and gpu.slug)


@pytest.mark.parametrize(
    ("device_name", "gib", "units", "slug"),
    [
        ("NVIDIA GeForce RTX 3060", 12, None, "rtx-3060-12g"),
        ("NVIDIA GeForce RTX 3060", 8, None, None),
        ("NVIDIA GeForce RTX 3080", 12, 70, None),
        ("NVIDIA GeForce RTX 4060 Ti", 8, None, None),
        ("Apple M4 Max", 36, 32, None),
        ("Apple M1", 8, 8, "m1"),
        ("NVIDIA GB300", 278, 152, "gb300"),
        ("Radeon RX 7900 XTX", 24, 48, "rx-7900-xtx"),
        ("Intel(R) Data Center GPU Max 1550", 64, None, None),
    ],
)
def test_part_that_differs_is_not_the_row(device_name: str, gib: int, units: int | None, slug: str | None) -> None:
    """A part with another memory or count of units shares a row's name and not its numbers."""
    gpu = gpu_of_device(device_name, gib * GIB, units)

    assert slug == (gpu and gpu.slug)


@pytest.mark.parametrize(
    ("read", "found"),
    [(14_400_000_000, True), (14_399_999_999, False), (17_600_000_000, True), (17_600_000_001, False)],
)
def test_memory_may_differ_by_a_tenth(read: int, found: bool) -> None:  # noqa: FBT001 -- the case's outcome
    """A total up to 10 % off the 16 GB on the box is the driver's share or a maker's idea of a GB; more is not it."""
    assert found == (gpu_of_device("NVIDIA GeForce RTX 4060 Ti", read) is not None)
