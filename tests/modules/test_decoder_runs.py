"""The reference decoder runs: any device, dtype and combination of parts; what it refuses, it refuses in words."""

from __future__ import annotations

import ast
import copy
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

import gptcalc.modules
from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError
from gptcalc.modules import MultiHeadAttention, build
from gptcalc.modules.itemised import Dims, make
from gptcalc.spec import LayerGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conftest import Toy

COMPILER = shutil.which("g++") or shutil.which("clang++")


def test_modules_import_no_formula() -> None:
    """The witness can disagree: of gptcalc it imports only spec, units and errors."""
    allowed = {"gptcalc.spec", "gptcalc.units", "gptcalc.errors"}
    for path in Path(gptcalc.modules.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = {name for name in names if name.startswith("gptcalc") and not name.startswith("gptcalc.modules")}
            assert ours <= allowed, path.name


def test_every_parameter_learns(toy: Toy) -> None:
    """After one step of training, every parameter has a finite gradient that is not zero throughout."""
    decoder = toy.decoder().train()
    decoder(toy.tokens(), toy.tokens().flip(1)).loss.backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_no_token_sees_what_follows(toy: Toy) -> None:
    """Changing the last token changes no earlier logits."""
    decoder, tokens = toy.decoder().eval(), toy.tokens()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % toy.n_vocab
    with torch.no_grad():
        before, after = decoder(tokens).logits, decoder(changed).logits
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_grouped_fused_attention_is_a_plain_softmax(grouped_fused_toy: Toy) -> None:
    """Fused, grouped, rotary attention equals the textbook formula, head by head."""
    spec = grouped_fused_toy.spec
    attention = grouped_fused_toy.decoder().eval().trunk.list_of_layers[0].attn
    x = torch.randn(2, 7, spec.d_model)
    query, key, value = (x @ attention.c_attn.weight).split((48, 16, 16), dim=-1)
    heads = []
    for head in range(6):
        q, k, v = (
            part[..., shared * 8 : shared * 8 + 8]
            for part, shared in ((query, head), (key, head // 3), (value, head // 3))
        )
        q, k = (_rotated(part) for part in (q, k))
        scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(attention(x), torch.cat(heads, -1) @ attention.c_proj.weight, rtol=1e-5, atol=1e-5)


def _rotated(x: torch.Tensor) -> torch.Tensor:
    """Su et al. 2021 with complex numbers: feature i and i + R/2 are one number, turned by pos / 10000^(2i/R)."""
    half = x.shape[-1] // 2
    turns = torch.outer(torch.arange(x.shape[1]), 10_000.0 ** (-torch.arange(half) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(turns), turns)
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_groups_of_layers_run_in_order(gpt2_toy: Toy) -> None:
    """Two groups of different blocks give one list of layers, numbered through."""
    spec = gpt2_toy.spec
    wide = resolve(gpt2_toy.config, {"d_ff": 99}).spec.layers[0].block
    groups = (LayerGroup(n_layers=1, block=spec.layers[0].block), LayerGroup(n_layers=2, block=wide))
    decoder = build(spec.model_copy(update={"layers": groups}))
    shapes = [tuple(decoder.get_parameter(f"transformer.h.{layer}.mlp.c_fc.weight").shape) for layer in range(3)]
    assert shapes == [(30, 71), (30, 99), (30, 99)]
    assert decoder(gpt2_toy.tokens()).logits.isfinite().all()


def test_meta_device_gives_shapes(toy: Toy) -> None:
    """On the meta device a model is built and run without values, for a loss too."""
    with torch.device("meta"):
        decoder = build(toy.spec, attention="math")
    tokens = toy.tokens().to("meta")
    logits, loss = decoder(tokens, tokens)
    assert logits.is_meta
    assert logits.shape == (3, 13, toy.n_vocab)
    assert loss.shape == ()
    assert {name: t.shape for name, t in decoder.state_dict().items()} == {
        name: t.shape for name, t in build(toy.spec).state_dict().items()
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(toy: Toy) -> None:
    """On a CUDA device, logits equal those of the CPU."""
    decoder, tokens = toy.decoder().eval(), toy.tokens()
    with torch.no_grad():
        here = decoder(tokens).logits
        there = decoder.to("cuda")(tokens.to("cuda")).logits
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


def test_bfloat16_follows_the_parameters(toy: Toy) -> None:
    """Cast to bf16, logits are bf16, near those of fp32, and the loss is fp32."""
    decoder, tokens = build(toy.spec).eval(), toy.tokens()
    exact = decoder(tokens, tokens)
    logits, loss = decoder.to(torch.bfloat16)(tokens, tokens)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logits.float(), exact.logits, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", ["gpt2", "gpt1-rotary", "gpt2-rotary-grouped-no-bias", "mixtral"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's, where graphs break
def test_compiled_equals_eager(toys: Mapping[str, Toy], name: str) -> None:
    """Traced by torch.compile, logits and gradients equal eager's; without a mixture there is one graph."""
    torch.compiler.reset()
    toy = toys[name]
    decoder, tokens = toy.decoder().eval(), toy.tokens()
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=name != "mixtral")
    expected, (logits, loss) = decoder(tokens, tokens), compiled(tokens, tokens)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    parameters = list(decoder.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected.loss, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_equals_eager(toys: Mapping[str, Toy]) -> None:
    """Compiled to machine code by inductor, logits equal eager's."""
    torch.compiler.reset()
    toy = toys["gpt2-one-layer-head-bias"]
    decoder, tokens = toy.decoder().eval(), toy.tokens()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(decoder)(tokens).logits, decoder(tokens).logits, rtol=1e-4, atol=1e-4)


def test_dropout_only_in_training(gpt2_toy: Toy) -> None:
    """In training two passes differ by dropout; in evaluation they are the same."""
    decoder, tokens = gpt2_toy.decoder(), gpt2_toy.tokens()
    assert not torch.equal(decoder.train()(tokens).logits, decoder(tokens).logits)
    assert torch.equal(decoder.eval()(tokens).logits, decoder(tokens).logits)


@pytest.mark.parametrize("field", ["embedding_dropout", "attention_dropout", "residual_dropout"])
def test_each_dropout_acts_alone(gpt2_toy: Toy, field: str) -> None:
    """Each of the three dropouts is applied where its own probability alone is not zero."""
    off = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    tokens = gpt2_toy.tokens()
    still = build(resolve(gpt2_toy.config, off).spec).train()
    assert torch.equal(still(tokens).logits, still(tokens).logits)
    decoder = build(resolve(gpt2_toy.config, off | {field: 0.5}).spec).train()
    assert not torch.equal(decoder(tokens).logits, decoder(tokens).logits)


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "mixtral"])
def test_residual_dropout_follows_attention_and_mlp(toys: Mapping[str, Toy], name: str) -> None:
    """In training, about the stated share of what attention gives, and of what the MLP gives, is zero."""
    torch.manual_seed(0)
    block = build(resolve(toys[name].config, {"residual_dropout": 0.5}).spec).train().trunk.list_of_layers[0]
    x = torch.randn(2, 13, toys[name].spec.d_model)
    for part in (block.child(half.part) for half in block.halves):
        gone = part(x) == 0
        assert abs(float(gone.float().mean()) - 0.5) < 5 * 0.5 / gone.numel() ** 0.5
        assert not (part.eval()(x) == 0).any()


def test_tie_survives_every_way_to_move(gpt2_toy: Toy) -> None:
    """Copied, cast, moved off the meta device or assigned, a tied unembedding shares the token table."""
    with torch.device("meta"):
        decoder = build(gpt2_toy.spec)
    decoder.to_empty(device="cpu")
    assert decoder.lm_head.weight is decoder.transformer.wte.weight
    decoder.load_state_dict({name: tensor.clone() for name, tensor in decoder.state_dict().items()}, assign=True)
    assert decoder.lm_head.weight is decoder.transformer.wte.weight
    for move in (torch.nn.Module.double, copy.deepcopy):
        moved = move(decoder)
        assert moved.lm_head.weight is moved.transformer.wte.weight


def test_reset_draws_every_parameter(toy: Toy) -> None:
    """Off the meta device, a reset leaves no number from before in any parameter."""
    with torch.device("meta"):
        decoder = build(toy.spec)
    decoder.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(7.0)
    decoder.reset_parameters()
    assert not [name for name, parameter in decoder.named_parameters() if (parameter == 7.0).any()]


def test_meta_parameters_are_not_drawn(gpt2_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device nothing is initialised: it would cost time and change nothing."""
    calls = []
    for name in ("normal_", "constant_"):
        monkeypatch.setattr(torch.nn.init, name, lambda *args, **_: calls.append(args))
    with torch.device("meta"):
        build(gpt2_toy.spec)
    assert not calls
    build(gpt2_toy.spec)
    assert calls


def test_initial_weights_have_the_stated_spread() -> None:
    """Seeded, matrices and tables have mean 0 and std 0.02 within five standard errors; biases are 0 and gains 1."""
    torch.manual_seed(0)
    config = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 997}
    for name, parameter in build(resolve(config, {"tied": False}).spec).state_dict().items():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float(".ln_" in name and name.endswith("weight"))))
            continue
        n = parameter.numel()
        assert abs(float(parameter.mean())) < 5 * 0.02 / n**0.5, name
        assert abs(float(parameter.std()) / 0.02 - 1) < 5 / (2 * n) ** 0.5, name


def test_mixture_weights_are_initialised(mixtral_toy: Toy) -> None:
    """Experts and router start from the same spread; no number is left over from empty memory."""
    torch.manual_seed(0)
    mlp = build(mixtral_toy.spec).trunk.list_of_layers[0].mlp
    for parameter in mlp.state_dict().values():
        assert abs(float(parameter.std()) / 0.02 - 1) < 5 / (2 * parameter.numel()) ** 0.5


def test_gpt3_is_built_at_once_on_meta() -> None:
    """GPT-3 175B takes well under half a second to build without values."""
    config = {"model_type": "gpt2", "n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048}
    spec, times = resolve(config, {}).spec, []
    for _ in range(3):
        start = time.perf_counter()
        with torch.device("meta"):
            decoder = build(spec)
        times.append(time.perf_counter() - start)
    assert all(parameter.is_meta for parameter in decoder.parameters())
    assert min(times) < 0.5


def test_loss_is_computed_in_fp32_over_what_counts(gpt2_toy: Toy) -> None:
    """The loss is the mean cross entropy over targets that are not −100, and its absence is None."""
    decoder, tokens = gpt2_toy.decoder().eval(), gpt2_toy.tokens()
    targets = tokens.clone()
    targets[0] = -100
    logits, loss = decoder(tokens, targets)
    torch.testing.assert_close(loss, functional.cross_entropy(logits[1:].flatten(0, 1), tokens[1:].flatten()))
    assert decoder(tokens).loss is None


@pytest.mark.parametrize(
    ("tokens", "kind", "words"),
    [
        (torch.zeros(1, 4), ValueError, r"read dtype torch\.float32; allowed: torch\.int64"),
        (torch.zeros(1, 4, dtype=torch.bool), ValueError, r"read dtype torch\.bool"),
        (torch.zeros(4, dtype=torch.long), ValueError, r"read shape \(4,\); allowed: two axes"),
        ([[0, 1]], ValueError, "read a list; allowed: a tensor"),
        (torch.zeros(1, 20, dtype=torch.long), ValueError, "a sequence of 20 tokens; allowed: at most n_ctx=19"),
        (torch.tensor([[0, 67]]), IndexError, "values from 0 to 67; allowed: 0 to 66"),
        (torch.tensor([[-1, 3]]), IndexError, "values from -1 to 3"),
    ],
)
def test_bad_tokens_are_named(gpt2_toy: Toy, tokens: object, kind: type[Exception], words: str) -> None:
    """Tokens of a wrong type, shape, length or range raise an error that says what was read and what is allowed."""
    with pytest.raises(kind, match=words) as caught:
        gpt2_toy.decoder()(tokens)
    assert isinstance(caught.value, GptcalcError)


@pytest.mark.parametrize(
    ("targets", "kind", "words"),
    [
        (
            torch.zeros(1, 5, dtype=torch.long),
            ValueError,
            r"targets: read shape \(1, 5\); allowed: that of input_ids, \(1, 4\)",
        ),
        (torch.full((1, 4), 67), IndexError, "targets: read values from 67 to 67"),
        (torch.full((1, 4), -1), IndexError, "targets: read values from -1"),
        (torch.zeros(1, 4), ValueError, r"targets: read dtype torch\.float32"),
    ],
)
def test_bad_targets_are_named(gpt2_toy: Toy, targets: torch.Tensor, kind: type[Exception], words: str) -> None:
    """Targets of a wrong dtype, shape or range raise an error that says what was read and what is allowed."""
    with pytest.raises(kind, match=words):
        gpt2_toy.decoder()(torch.zeros(1, 4, dtype=torch.long), targets)


def test_length_is_free_without_a_table(llama_toy: Toy) -> None:
    """Rotary positions run beyond n_ctx: no tensor ends there."""
    assert llama_toy.decoder()(llama_toy.tokens(1, 29)).logits.shape == (1, 29, llama_toy.n_vocab)


def test_rotary_scaling_is_refused_when_run(llama_toy: Toy) -> None:
    """A long-context rule can be built and counted, and says when it is run that it cannot be."""
    rope = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0}
    decoder = build(resolve(llama_toy.config | {"rope_parameters": rope}, {}).spec)
    with pytest.raises(ValueError, match="rotary scaling: read 'llama3'; allowed: none"):
        decoder(llama_toy.tokens())


def test_checks_leave_no_trace_in_recordings(gpt2_toy: Toy) -> None:
    """Under a mode that records ops, only the model's own ops run: the range of tokens is not looked at."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            ops.append(str(func))
            return func(*args, **(kwargs or {}))

    ops: list[str] = []
    with Recorder():
        gpt2_toy.decoder()(gpt2_toy.tokens(), gpt2_toy.tokens())
    assert "aten.embedding.default" in ops
    assert not [op for op in ops if "aminmax" in op or "_local_scalar_dense" in op]


def test_unknown_parts_are_refused() -> None:
    """An unknown kind, field, activation or order is an error, never built as something else."""
    dims = Dims(8, 11, 5)
    mlp = {"kind": "dense", "name": "mlp", "d_ff": 16, "activation": "silu", "bias": True}
    with pytest.raises(UnknownNameError, match="kind of module: read 'densee'; nearest: dense"):
        make(mlp | {"kind": "densee"}, dims)
    with pytest.raises(InvalidValueError, match="dense: read window=3; the reference module of this kind knows none"):
        make(mlp | {"window": 3}, dims)
    with pytest.raises(UnknownNameError, match="activation: read 'silo'; nearest: silu"):
        make(mlp | {"activation": "silo"}, dims)
    norm = {"kind": "rms_norm", "name": "norm"}
    block = {"kind": "block", "attention_norm": norm, "attention": mlp, "mlp_norm": norm, "mlp": mlp}
    with pytest.raises(UnknownNameError, match="order of norms"):
        make(block | {"order": "sideways"}, dims)
    with pytest.raises(InvalidValueError, match="read a part named 'mlp'; allowed: a free name"):
        make(block | {"order": "post", "mlp_norm": norm | {"name": "norm_2"}}, dims)


def test_two_modules_of_a_kind_are_refused() -> None:
    """A kind has one module: a second registration is an error, and does not replace the first."""
    from gptcalc.modules import register

    with pytest.raises(TypeError, match="two modules of kind 'multi_head'"):
        register("multi_head")(MultiHeadAttention)
