"""Measures steps of transformers' classes on fake CUDA tensors with tools that share nothing with gptcalc.

PYTHONPATH=TOOLS python tests/measure_steps.py tests/data/measured_steps.json

TOOLS holds fakecuda.py, saved_acts.py and peak.py. Each case: a config, the phases' peaks of the second step in bytes
rounded up to 512, and what autograd keeps of one forward pass by dtype and bytes. The gradients that meet at a residual
add are added out of place while they are watched; only cases whose peaks are elsewhere are exact.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peak
import torch
import transformers
from saved_acts import measure
from torch._subclasses.fake_tensor import FakeTensorMode

Case = dict[str, Any]
GPT2: Case = {"model_type": "gpt2", "n_layer": 3, "n_embd": 240, "n_head": 5, "vocab_size": 50021, "n_positions": 2048}
LLAMA: Case = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 320,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "intermediate_size": 901,
    "vocab_size": 32003,
    "max_position_embeddings": 4096,
}


def cases() -> Iterator[Case]:
    """Sizes, lengths that are multiples of nothing, optimizers, checkpoints, each by itself and some together."""
    for config, precision, attention in itertools.product(
        (GPT2, LLAMA), ("fp32", "bf16", "autocast-bf16"), ("sdpa", "eager")
    ):
        yield {"config": config, "precision": precision, "attention": attention, "batch": 3, "seq": 131}
    one = {"config": GPT2, "precision": "bf16", "attention": "sdpa", "batch": 2, "seq": 517}
    for fields in (
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu_fast"},
        {"n_inner": 777},
        {"activation_function": "relu"},
        {"tie_word_embeddings": False},
        {"n_layer": 7, "n_head": 3},
        {"resid_pdrop": 0.0},
        {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ):
        for precision, attention in (("fp32", "sdpa"), ("bf16", "eager"), ("autocast-bf16", "sdpa")):
            yield one | {"config": GPT2 | fields, "precision": precision, "attention": attention}
    for fields in (
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 10},
        {"num_hidden_layers": 6, "attention_dropout": 0.1},
    ):
        for precision, attention in (("fp32", "sdpa"), ("bf16", "eager"), ("autocast-bf16", "sdpa")):
            yield one | {"config": LLAMA | fields, "precision": precision, "attention": attention}
    for config, precision, optimizer in itertools.product(
        (GPT2, LLAMA), ("fp32", "bf16", "autocast-bf16"), ("fused", "loop")
    ):
        yield one | {"config": config, "precision": precision, "optimizer": optimizer, "batch": 1, "seq": 33}
    for config, precision, attention in itertools.product(
        (GPT2, LLAMA), ("fp32", "bf16", "autocast-bf16"), ("sdpa", "eager")
    ):
        yield one | {
            "config": config,
            "precision": precision,
            "attention": attention,
            "checkpointing": True,
            "seq": 1023,
        }


def build(case: Case) -> Any:
    """The class of a case, in its precision."""
    fields = dict(case["config"])
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), use_cache=False, **fields)
    torch.set_default_dtype(torch.bfloat16 if case["precision"] == "bf16" else torch.float32)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=case["attention"]).train()
    torch.set_default_dtype(torch.float32)
    return model


def saved(case: Case) -> dict[str, int]:
    """What one forward pass keeps."""
    with FakeTensorMode(), torch.device("cuda"):
        model, ids = build(case), torch.zeros(case["batch"], case["seq"], dtype=torch.long)
        found = measure(model, lambda: model(input_ids=ids, labels=ids).loss, case["precision"])
    rows = [row for row in found["items"] if row["cls"] in ("activation", "weight_copy")]
    return dict(sorted(collections.Counter(f"{row['dtype']} {row['bytes']}" for row in rows).items()))


def phases(case: Case) -> tuple[dict[str, int], dict[str, str]]:
    """The peaks of the second step."""
    peak.build = lambda _: (build(case), 0)
    optimizer, again = case.get("optimizer", "foreach"), case.get("checkpointing", False)
    found = peak.one("", case["precision"], optimizer, case["batch"], case["seq"], ckpt=again)
    return dict(found["step2_peaks"]), dict(found["step2_peak_op"])


def main() -> None:
    """Measure all, and say which is done."""
    transformers.logging.set_verbosity(40)
    rows = []
    for case in cases():
        row = dict(case)
        if not case.get("checkpointing"):
            row["saved"] = saved(case)
        row["phases"], row["peak_ops"] = phases(case)
        rows.append(row)
        print(len(rows), case["config"]["model_type"], case["precision"], row["phases"], flush=True)  # noqa: T201
    provenance = (
        f"transformers {transformers.__version__}'s classes on fake CUDA tensors, torch {torch.__version__}, by"
        " tests/measure_steps.py with tools/saved_acts.py and tools/peak.py: live bytes of the second step by phase,"
        " each storage rounded up to 512, without what kernels take for themselves; labels are the token IDs."
    )
    with Path(sys.argv[1]).open("w") as file:
        json.dump({"provenance": provenance, "cases": rows}, file, indent=1)
        file.write("\n")
    sys.stdout.flush()
    os._exit(0)  # the engine's thread of the fake device is never joined


main()
