"""Toy models of every family, at odd sizes, and the published classes to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from gptcalc.catalog import resolve
from gptcalc.modules import Decoder, build
from gptcalc.spec import Spec

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 67,
    "n_positions": 19,
    "n_embd": 30,
    "n_layer": 2,
    "n_head": 5,
    "n_inner": 71,
}
GPT1 = {"model_type": "openai-gpt", "vocab_size": 61, "n_positions": 17, "n_embd": 21, "n_layer": 2, "n_head": 3}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 71,
    "max_position_embeddings": 23,
    "hidden_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 47,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_key_value_heads": 3,
    "intermediate_size": 35,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
}


class Toy(NamedTuple):
    """A small model: a config as published, and overrides that only gptcalc knows."""

    config: Mapping[str, Any]
    overrides: Mapping[str, Any] = {}

    @property
    def spec(self) -> Spec:
        """The toy's spec."""
        return resolve(self.config, self.overrides).spec

    @property
    def n_vocab(self) -> int:
        """V."""
        return self.spec.n_vocab

    def decoder(self) -> Decoder:
        """The module under test with every number random, so that no bias or gain is a no-op."""
        torch.manual_seed(1)
        return randomised(build(self.spec))

    def published(self) -> torch.nn.Module:
        """The transformers class with random numbers, in evaluation mode."""
        from transformers import AutoConfig, AutoModelForCausalLM

        fields = {key: value for key, value in self.config.items() if key != "model_type"}
        config = AutoConfig.for_model(self.config["model_type"], **fields)
        # The grouped kernel wants widths that are multiples of four.
        how = {"experts_implementation": "eager"} if config.model_type == "mixtral" else {}
        torch.manual_seed(0)
        return randomised(AutoModelForCausalLM.from_config(config, **how)).eval()

    def tokens(self, batch: int = 3, length: int = 13) -> torch.Tensor:
        """Random token IDs (B, T)."""
        generator = torch.Generator().manual_seed(batch * 1000 + length)
        return torch.randint(self.n_vocab, (batch, length), generator=generator)


def randomised(model: Any) -> Any:
    """Every parameter from N(0, 0.2²)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model


PUBLISHED = {
    "gpt2": Toy(GPT2),
    "gpt2-untied-gelu": Toy(GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "gpt1": Toy(GPT1),
    "llama-grouped": Toy(LLAMA),
    "llama-biases-tied": Toy(LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mixtral": Toy(MIXTRAL),
    "mixtral-relu-3-of-5": Toy(MIXTRAL | {"hidden_act": "relu", "num_experts_per_tok": 3}),
}
VARIED = {
    "gpt2-rotary-grouped-no-bias": Toy(
        GPT2 | {"n_head": 6}, {"positions": "rotary", "n_kv_heads": 2, "d_head": 8, "bias": False}
    ),
    "gpt2-sinusoidal-untied": Toy(
        GPT2, {"positions": "sinusoidal", "tied": False, "norm_bias": False, "out_bias": False}
    ),
    "gpt2-one-layer-head-bias": Toy(
        GPT2 | {"n_layer": 1}, {"unembedding_bias": True, "activation": "gelu_pytorch_tanh"}
    ),
    "gpt1-rotary": Toy(GPT1, {"positions": "rotary", "d_head": 8, "activation": "silu"}),
    "llama-learned-tied": Toy(LLAMA, {"positions": "learned", "tied": True, "embedding_dropout": 0.1}),
    "mixtral-sinusoidal": Toy(MIXTRAL, {"positions": "sinusoidal"}),
    "llama-no-positions": Toy(LLAMA, {"positions": "none", "mlp_bias": True}),
}


@pytest.fixture(params=PUBLISHED.values(), ids=PUBLISHED)
def published_toy(request: pytest.FixtureRequest) -> Toy:
    """A toy that a transformers class can be."""
    toy: Toy = request.param
    return toy


@pytest.fixture(params=(PUBLISHED | VARIED).values(), ids=PUBLISHED | VARIED)
def toy(request: pytest.FixtureRequest) -> Toy:
    """A toy, those included that no transformers class can be."""
    toy: Toy = request.param
    return toy


@pytest.fixture
def toys() -> Mapping[str, Toy]:
    """Every toy by its name."""
    return PUBLISHED | VARIED


@pytest.fixture
def gpt2_toy() -> Toy:
    """GPT-2 in small."""
    return PUBLISHED["gpt2"]


@pytest.fixture
def mixtral_toy() -> Toy:
    """Mixtral in small."""
    return PUBLISHED["mixtral"]


@pytest.fixture
def llama_toy() -> Toy:
    """Llama in small."""
    return PUBLISHED["llama-grouped"]


@pytest.fixture
def grouped_fused_toy() -> Toy:
    """GPT-2's fused layer with K < N, N·H ≠ D, rotary positions and no bias."""
    return VARIED["gpt2-rotary-grouped-no-bias"]
