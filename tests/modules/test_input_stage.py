"""The input stage on its own: GPTEmbedding, its config, and both kinds of positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from gptcalc.errors import GptcalcError
from gptcalc.modules.embedding import (
    GPTEmbedding,
    GPTEmbeddingConfig,
    PositionalEmbedding,
    SinusoidalPositionalEmbedding,
    TokenEmbedding,
)

GPT2_WIDTHS = {"small": 768, "medium": 1024, "large": 1280, "xl": 1600}
SMALL = {"n_vocab": 41, "d_model": 15, "n_ctx": 9}
TOKENS = torch.tensor([[1, 5, 40, 0, 7], [2, 2, 3, 39, 8]])


@pytest.mark.parametrize("width", GPT2_WIDTHS.values(), ids=GPT2_WIDTHS)
def test_parameters_are_two_tables(width: int) -> None:
    """At GPT-2's sizes the stage has V·D + C·D parameters: the LayerNorm that may run has none."""
    with torch.device("meta"):
        stage = GPTEmbedding(vocab_size=50257, embed_dim=width, max_seq_len=1024)
    assert sum(parameter.numel() for parameter in stage.parameters()) == 50257 * width + 1024 * width
    assert stage(torch.zeros(2, 10, dtype=torch.long, device="meta"), use_layer_norm=True).shape == (2, 10, width)


def test_gpt2_state_dict_loads_strictly() -> None:
    """GPT-2's own tables load by their published names, and the stage computes what GPT-2's input does."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    published = GPT2Model(GPT2Config(vocab_size=41, n_positions=9, n_embd=15, n_head=3, n_layer=1))
    tables = {name: tensor for name, tensor in published.state_dict().items() if name.startswith("w")}
    stage = GPTEmbedding(GPTEmbeddingConfig(**SMALL)).eval()
    stage.load_state_dict(tables)
    assert list(stage.state_dict()) == ["wte.weight", "wpe.weight"]
    assert torch.equal(stage(TOKENS), published.wte(TOKENS) + published.wpe(torch.arange(5)))


def test_children_may_have_other_names() -> None:
    """The names of the two tables are the caller's to choose."""
    stage = GPTEmbedding(**SMALL, names=("tokens_embed", "positions_embed"))
    assert list(stage.state_dict()) == ["tokens_embed.weight", "positions_embed.weight"]


def test_names_of_the_notes_are_accepted_and_read() -> None:
    """A config takes and gives the notes' names, and both ways to build a stage agree."""
    config = GPTEmbeddingConfig(vocab_size=41, embed_dim=15, max_seq_len=9, dropout=0.2, use_sinusoidal=True)
    assert config == GPTEmbeddingConfig(**SMALL, dropout=0.2, positions="sinusoidal")
    assert (config.vocab_size, config.embed_dim, config.max_seq_len, config.use_sinusoidal) == (41, 15, 9, True)
    assert GPTEmbedding.from_config(config).config == GPTEmbedding(config).config == config
    by_keyword = GPTEmbedding(vocab_size=41, embed_dim=15, max_seq_len=9, dropout=0.2, use_sinusoidal=True)
    assert by_keyword.config == config


def test_defaults_are_those_of_gpt2() -> None:
    """Without fields, a config is GPT-2's input stage."""
    assert GPTEmbeddingConfig().model_dump() == {
        "n_vocab": 50257,
        "d_model": 768,
        "n_ctx": 1024,
        "dropout": 0.1,
        "positions": "learned",
        "scaled": False,
        "layer_norm": False,
    }


@pytest.mark.parametrize("field", ["vocab_size", "d_model", "n_ctx"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, 768.0, "768", None])
def test_bad_sizes_are_refused(field: str, value: object) -> None:
    """A size that is not a whole number from 1 is an error that quotes it."""
    with pytest.raises(ValueError, match="read") as caught:
        GPTEmbeddingConfig(**{field: value})
    assert isinstance(caught.value, GptcalcError)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dropout": 1.0}, "dropout: read 1.0; allowed: less than 1"),
        ({"dropout": -0.1}, "dropout: read -0.1; allowed: greater than or equal to 0"),
        ({"dropout": math.nan}, "dropout: read nan"),
        ({"dropout": False}, "dropout: read False"),
        ({"positions": "rotary"}, "positions: read 'rotary'; allowed: 'learned', 'sinusoidal' or 'none'"),
        ({"use_sinusoidal": 1}, "use_sinusoidal: read 1; allowed: True or False"),
        ({"scaled": "yes"}, "scaled: read 'yes'"),
        ({"embed_dims": 4}, "read 'embed_dims'; nearest: embed_dim"),
        ({"embed_dim": 4, "d_model": 8}, "d_model: read 4 and 8"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, object], words: str) -> None:
    """A value outside what is allowed, or a field that does not exist, is an error that says what is allowed."""
    for maker in (GPTEmbeddingConfig, GPTEmbedding):
        with pytest.raises(ValueError, match=words):
            maker(**fields)


def test_config_and_fields_exclude_each_other() -> None:
    """A stage is built from a config or from fields; anything else is refused in words."""
    with pytest.raises(ValueError, match="read a config and dropout"):
        GPTEmbedding(GPTEmbeddingConfig(**SMALL), dropout=0.5)
    with pytest.raises(ValueError, match="read 50257; allowed: a GPTEmbeddingConfig"):
        GPTEmbedding(50257)


def test_config_is_frozen() -> None:
    """A config does not change once it is checked."""
    with pytest.raises(ValueError, match="frozen"):
        GPTEmbeddingConfig().dropout = 3.0


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_both_kinds_of_positions_follow_the_dtype(positions: str, dtype: torch.dtype) -> None:
    """With each kind of positions, the result has the shape (B, T, D) and the tables' dtype."""
    stage = GPTEmbedding(**SMALL, positions=positions).to(dtype)
    assert stage(TOKENS).shape == (2, 5, 15)
    assert stage(TOKENS).dtype == dtype


def test_stage_is_the_sum_of_its_parts() -> None:
    """Without dropout the result is token row plus position row, normalised over D where that is asked for."""
    stage = GPTEmbedding(**SMALL).eval()
    expected = stage.wte.weight[TOKENS] + stage.wpe.weight[:5]
    assert torch.equal(stage(TOKENS), expected)
    normal = (expected - expected.mean(-1, keepdim=True)) / (expected.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(stage(TOKENS, use_layer_norm=True), normal)


def test_learned_layer_norm_always_runs() -> None:
    """With layer_norm the norm has 2·D parameters, which forward uses with and without asking."""
    stage = GPTEmbedding(**SMALL, layer_norm=True).eval()
    assert sum(parameter.numel() for parameter in stage.parameters()) == (41 + 9 + 2) * 15
    with torch.no_grad():
        stage.input_norm.weight.fill_(3.0)
        stage.input_norm.bias.fill_(0.5)
    summed = stage.wte.weight[TOKENS] + stage.wpe.weight[:5]
    torch.testing.assert_close(stage(TOKENS), functional.layer_norm(summed, (15,)) * 3 + 0.5)
    assert torch.equal(stage(TOKENS), stage(TOKENS, use_layer_norm=True))
    assert [key for key, _ in stage.itemise()] == ["embedding", "positions", "norm_weight", "norm_bias"]


def test_scaling_multiplies_token_rows_only() -> None:
    """Scaled, token rows are multiplied by √D (Vaswani et al. 2017, §3.4) and positions are not."""
    tokens = TokenEmbedding(vocab_size=41, embed_dim=15, scaled=True)
    assert torch.equal(tokens(TOKENS), tokens.weight[TOKENS] * math.sqrt(15))
    stage = GPTEmbedding(**SMALL, scaled=True).eval()
    torch.testing.assert_close(stage(TOKENS), stage.wte.weight[TOKENS] * math.sqrt(15) + stage.wpe.weight[:5])


def test_dropout_keeps_the_mean_in_training() -> None:
    """In training a share of about p is zero and the rest is scaled by 1/(1−p); in evaluation nothing is dropped."""
    torch.manual_seed(0)
    stage = GPTEmbedding(n_vocab=41, d_model=999, n_ctx=9, dropout=0.25)
    whole, dropped = stage.eval()(TOKENS), stage.train()(TOKENS)
    gone = dropped == 0
    assert abs(float(gone.float().mean()) - 0.25) < 5 * (0.25 * 0.75 / gone.numel()) ** 0.5
    torch.testing.assert_close(dropped[~gone], whole[~gone] / 0.75)


def test_initial_tables_have_the_stated_spread() -> None:
    """Seeded, both tables have mean 0 and std 0.02 within five standard errors."""
    torch.manual_seed(0)
    for table in GPTEmbedding(n_vocab=997, d_model=101, n_ctx=503).state_dict().values():
        n = table.numel()
        assert abs(float(table.mean())) < 5 * 0.02 / n**0.5
        assert abs(float(table.std()) / 0.02 - 1) < 5 / (2 * n) ** 0.5


@pytest.mark.parametrize("use_layer_norm", [False, True])
def test_gradients_reach_what_was_looked_up(*, use_layer_norm: bool) -> None:
    """Rows that were looked up have a gradient and the others have none, in both tables."""
    stage = GPTEmbedding(**SMALL).eval()
    stage(TOKENS, use_layer_norm).pow(3).sum().backward()
    assert stage.wte.weight.grad.any(dim=1).nonzero().flatten().tolist() == sorted(set(TOKENS.flatten().tolist()))
    assert stage.wpe.weight.grad.any(dim=1).tolist() == [True] * 5 + [False] * 4


@pytest.mark.parametrize("width", [1, 2, 7, 16])
def test_sinusoids_are_the_formula_of_the_paper(width: int) -> None:
    """PE(pos, 2i) = sin(pos/10000^(2i/D)) and PE(pos, 2i+1) = cos of the same, to fp64, at odd widths too."""
    positions = SinusoidalPositionalEmbedding(max_seq_len=4, embed_dim=width)
    ours = positions(torch.zeros(1, 11, width, dtype=torch.float64))
    expected = torch.tensor(
        [
            [(math.cos if j % 2 else math.sin)(pos / 10_000 ** ((j - j % 2) / width)) for j in range(width)]
            for pos in range(11)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)


def test_sinusoids_stay_exact_far_out() -> None:
    """At position 100,000, beyond max_seq_len, fp32 sinusoids are right to fp32's last digits."""
    positions = SinusoidalPositionalEmbedding(max_seq_len=1024, embed_dim=6)
    row = positions(torch.zeros(1, 100_001, dtype=torch.long))[-1]
    expected = [(math.cos if j % 2 else math.sin)(1e5 / 10_000 ** ((j - j % 2) / 6)) for j in range(6)]
    torch.testing.assert_close(row, torch.tensor(expected), rtol=0, atol=1e-7)


def test_sinusoids_store_nothing() -> None:
    """Sinusoids have no parameter, no buffer and no limit of length."""
    stage = GPTEmbedding(**SMALL, use_sinusoidal=True)
    assert list(stage.state_dict()) == ["wte.weight"]
    assert not list(stage.buffers())
    assert stage(torch.zeros(1, 30, dtype=torch.long)).shape == (1, 30, 15)
    assert SinusoidalPositionalEmbedding(embed_dim=4)(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.float32


def test_learned_positions_end() -> None:
    """A learned table has no row beyond its last, and says so."""
    with pytest.raises(ValueError, match="a sequence of 10 tokens; allowed: at most n_ctx=9"):
        PositionalEmbedding(max_seq_len=9, embed_dim=15)(torch.zeros(1, 10, dtype=torch.long))
    with pytest.raises(IndexError, match="values from 0 to 41; allowed: 0 to 40"):
        GPTEmbedding(**SMALL)(torch.tensor([[0, 41]]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_both_index_dtypes_are_tokens(dtype: torch.dtype) -> None:
    """Tokens may be int32 or int64."""
    stage = GPTEmbedding(**SMALL).eval()
    assert torch.equal(stage(TOKENS.to(dtype)), stage(TOKENS))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_compiled_stage_equals_eager(positions: str) -> None:
    """Traced as one graph, the stage gives what eager gives, LayerNorm included."""
    torch.compiler.reset()
    stage = GPTEmbedding(**SMALL, positions=positions).eval()
    compiled = torch.compile(stage, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS, use_layer_norm=True), stage(TOKENS, use_layer_norm=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_out_of_range_tokens_leave_the_device_alive() -> None:
    """On a CUDA device a bad token is a Python error, and the device goes on working."""
    stage = GPTEmbedding(**SMALL).to("cuda").eval()
    with pytest.raises(IndexError, match="values from 0 to 41"):
        stage(torch.tensor([[0, 41]], device="cuda"))
    assert stage(TOKENS.to("cuda")).is_cuda
