from __future__ import annotations

import json
from typing import Any

import pytest
from support import gptcalc

import gptcalc as library
from gptcalc.errors import GptcalcError, InvalidValueError
from gptcalc.ledger import memory as engine
from gptcalc.tape.backward import _RULES, Found

#: A toy of GPT-2 under a toy's plan.
TOY = {"n_layer": 3, "n_embd": 24, "n_head": 3, "vocab_size": 37, "n_positions": 11}
SETTINGS = {"batch": 2, "seq": 7, "attention": "flash"}
TYPED = ["--n-layers", "2", "--d-model", "64", "--vocab", "40", "--seq", "5"]


@pytest.mark.parametrize("witness", ["saved-tensors", "trace"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_tape_agrees_with_a_run_on_meta(witness: str, precision: str) -> None:
    """Both witnesses see tensors, and what they see is what the tape says."""
    check = library.check(witness=witness, settings={"batch": 2, "seq": 7, "precision": precision}, **TOY)

    assert check.agrees
    assert all(seen.tensors and seen.bytes for seen in check.evidence)


def test_a_trace_speaks_of_both_modes_unless_one_is_asked_for() -> None:
    """A training step and inference, or what `mode` says."""
    both = library.check(witness="trace", settings=SETTINGS, **TOY)
    one = library.check(witness="trace", settings={**SETTINGS, "mode": "inference"}, **TOY)

    assert [seen.subject.split()[0] for seen in both.evidence] == ["training", "inference"]
    assert [seen.subject.split()[0] for seen in one.evidence] == ["inference"]


def test_what_autograd_keeps_is_no_question_of_inference() -> None:
    """The witness says why it was not heard, and nothing counts as agreed."""
    check = library.check(witness="saved-tensors", settings={**SETTINGS, "mode": "inference"}, **TOY)

    assert not check.agrees
    assert check.evidence[0].skipped


def test_a_planted_error_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the gradient of biases the backward pass and what stays of it are smaller; the finding says where."""
    rule = _RULES["aten::addmm"]

    def lossy(op: Any, dys: Any) -> Any:
        rows, grads, _ = rule(op, dys)
        weights = {tensor: grad for tensor, grad in grads.items() if "bias" not in tensor.label}
        return Found(rows, weights)

    monkeypatch.setitem(_RULES, "aten::addmm", lossy)
    check = library.check(witness="trace", settings={**SETTINGS, "mode": "training"}, **TOY)

    assert not check.agrees
    assert {finding.kind.split(",")[0] for finding in check.evidence[0].findings} >= {"optimizer"}


def test_a_lost_activation_is_found_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tape that forgets what a GELU leaves disagrees with autograd, which names bytes and dtype."""
    record = engine.record

    def forgetful(*arguments: Any, **keywords: Any) -> Any:
        recording = record(*arguments, **keywords)
        for stage in recording.record.stages:
            for segment in stage.segments:
                for event in segment.events:
                    if event.slot.op == "aten::gelu":
                        event.slot.keepers.clear()
        return recording

    monkeypatch.setattr("gptcalc.witness.memory.record", forgetful)
    check = library.check(witness="saved-tensors", settings=SETTINGS, **TOY)

    assert [finding.name for finding in check.evidence[0].findings] == ["2,688 bytes, bf16"]
    assert (check.evidence[0].findings[0].expected, check.evidence[0].findings[0].found) == ("3", "6")


def test_settings_of_a_run_mean_nothing_to_a_witness_of_parameters() -> None:
    """They are refused rather than ignored, with the witnesses that take them."""
    with pytest.raises(InvalidValueError, match=r"batch .*saved-tensors, trace, transformers, cuda"):
        library.check(settings={"batch": 2}, **TOY)


def test_a_wrong_setting_is_an_error_as_in_memory() -> None:
    """A sequence beyond the context is refused before anything runs."""
    with pytest.raises(GptcalcError, match="at most 11"):
        library.check(witness="trace", settings={"seq": 12}, **TOY)


def test_the_command_prints_what_ran_and_validates() -> None:
    """One row a mode, bytes with a name, and JSON with the same."""
    table = gptcalc("check", *TYPED, "--witness", "trace", COLUMNS="80")
    data = json.loads(gptcalc("check", *TYPED, "--witness", "trace", "--format", "json").stdout)

    assert table.returncode == 0
    assert "bytes at once" in table.stdout
    assert table.stdout.count(" trace ") == 2
    assert [seen["bytes"] > 0 for seen in data["models"][0]["evidence"]] == [True, True]


def test_a_gpu_that_is_not_there_is_one_line() -> None:
    """`--witness cuda` without a GPU says so, and which witnesses need none; exit code 2."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = gptcalc("check", *TYPED, "--witness", "cuda")

    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "saved-tensors" in done.stderr
