"""The witnesses: what they cost, what they say when they cannot look, and that they share no code with the formula."""

import json
import subprocess
import sys

import pytest

import gptcalc
from gptcalc.errors import GptcalcError
from gptcalc.witness.check import WITNESSES

torch = pytest.importorskip("torch")

MEASURED = """
import json, resource, sys
from gptcalc.cli.app import run
code = run(["check", "gpt3-175b", "--witness", {witness!r}, "--format", "json"])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), file=sys.stderr)
"""
GIB_IN_KIB = 2**20


@pytest.mark.parametrize("witness", WITNESSES)
def test_gpt3_is_checked_in_under_a_gibibyte(witness: str) -> None:
    """174.6 billion parameters are compared without allocating one: the whole process stays under 1 GiB."""
    if witness == "transformers":
        pytest.importorskip("transformers")
    code = MEASURED.format(witness=witness)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exit_code, peak_kib = json.loads(done.stderr.splitlines()[-1])
    seen = json.loads(done.stdout)["models"][0]["evidence"][0]

    assert exit_code == 0
    assert peak_kib < GIB_IN_KIB
    assert (seen["tensors"], seen["stored"], seen["agrees"]) == (1157, 174_604_259_328, True)


def test_what_transformers_cannot_express_is_not_called_checked() -> None:
    """A model without query biases has no transformers class: the reference witnesses alone, and the reason is said."""
    pytest.importorskip("transformers")
    done = gptcalc.check("llms-from-scratch-124m")
    reference, published = done.evidence

    assert done.agrees
    assert reference.stored == 163_009_536
    assert published.skipped == "no transformers config has qkv_bias = False"


def test_what_transformers_refuses_is_said_in_its_words() -> None:
    """A config that the class itself rejects is no traceback, and no agreement."""
    pytest.importorskip("transformers")
    config = {"model_type": "llama", "hidden_size": 10, "num_attention_heads": 4, "head_dim": 2, "num_hidden_layers": 1}
    done = gptcalc.check(config, witness="transformers")

    assert not done.agrees
    assert "transformers refuses it" in done.evidence[0].skipped


def test_overrides_reach_the_transformers_class() -> None:
    """A changed model is built by transformers with the same changes, under its own names."""
    pytest.importorskip("transformers")
    evidence = gptcalc.check("gpt2-small", d_model=96, n_heads=4, tied=False, n_vocab=101, n_ctx=7, n_layers=2).evidence

    assert [seen.findings for seen in evidence] == [(), ()]
    assert [seen.skipped for seen in evidence] == ["", ""]
    assert evidence[0].stored == evidence[1].stored


def test_a_bias_for_all_layers_reaches_every_field_of_the_class() -> None:
    """`bias` is two fields in Llama's config; both are set, and the class agrees."""
    pytest.importorskip("transformers")
    evidence = gptcalc.check("llama-3-8b", bias=True, n_layers=2, witness="transformers").evidence

    assert (evidence[0].skipped, evidence[0].findings) == ("", ())


def test_a_config_in_gptcalcs_own_names_reaches_the_class_too() -> None:
    """Own names are translated for transformers, whether they come as overrides or in the file."""
    pytest.importorskip("transformers")
    config = {"model_type": "gpt2", "d_model": 96, "n_heads": 4, "n_layers": 3, "tied": False, "n_ctx": 7}
    evidence = gptcalc.check(config).evidence

    assert [(seen.skipped, seen.findings) for seen in evidence] == [("", ()), ("", ())]


def test_an_error_in_the_familys_mapping_is_found_by_the_transformers_class_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A field read into the wrong place fools the reference module, which reads the same spec, but not the class."""
    pytest.importorskip("transformers")
    from gptcalc.families.gpt2 import GPT2

    monkeypatch.setattr(GPT2, "width_ff", property(lambda self: 3 * self.d_model))
    reference, published = gptcalc.check({"model_type": "gpt2", "n_embd": 12, "n_head": 2, "n_layer": 2}).evidence

    assert reference.findings == ()
    assert {finding.name for finding in published.findings} >= {"transformer.h.0.mlp.c_fc.weight", "mlp_up"}


def test_an_unknown_witness_is_an_error_that_names_the_known_ones() -> None:
    """The API refuses what the command line refuses."""
    with pytest.raises(GptcalcError, match="nearest: transformers"):
        gptcalc.check("gpt2", witness="transformer")
