"""Many more steps of transformers' classes, measured on fake CUDA by tools that share nothing with gptcalc."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, get_args

import pytest
from steps import kept, tape_training
from support import DATA
from test_hf_facts import assert_measured

from gptcalc.catalog import resolve
from gptcalc.plan import Plan, Precision

CASES = json.loads((DATA / "measured_steps.json").read_text())["cases"]
KNOWN = [case for case in CASES if case["precision"] in get_args(Precision)]


def plan_of(case: dict[str, Any]) -> Plan:
    """What is asked of gptcalc; sdpa is the kernel that the tools route it to."""
    config = case["config"]
    grouped = config.get("num_key_value_heads", config.get("n_head")) != config.get(
        "num_attention_heads", config.get("n_head")
    )
    fused = "flash" if case["precision"] != "fp32" else "math" if grouped else "efficient"
    return Plan.model_validate(
        {
            "batch": case["batch"],
            "seq": case["seq"],
            "precision": case["precision"],
            "attention": "eager" if case["attention"] == "eager" else fused,
            "optimizer_impl": {"loop": "for-loop"}.get(
                case.get("optimizer", "foreach"), case.get("optimizer", "foreach")
            ),
            "checkpointing": "full" if case.get("checkpointing") else "none",
            "implementation": "transformers",
        }
    )


def _words(case: dict[str, Any]) -> str:
    others = [
        str(value) for key, value in case.items() if key in ("precision", "attention", "optimizer", "batch", "seq")
    ]
    return "-".join([*map(str, case["config"].values()), *others, *(["again"] if case.get("checkpointing") else [])])


@pytest.mark.parametrize("case", KNOWN, ids=_words)
def test_a_step_is_what_was_measured(case: dict[str, Any]) -> None:
    """Every phase's peak, in bytes rounded up to 512, and every storage that autograd keeps."""
    spec, plan = resolve(case["config"], {}).spec, plan_of(case)
    assert_measured(spec, plan, case)
    if "saved" in case:
        ours = kept(tape_training(spec, plan, n_steps=1))
        ours[f"int64 {case['batch'] * case['seq'] * 8}"] += 1  # the token IDs, which live anyhow
        assert ours == Counter({storage.replace("uint64", "int64"): n for storage, n in case["saved"].items()})
