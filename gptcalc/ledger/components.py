"""The words of the parameter ledger: what each component is, why it has its size, and who says so."""

from typing import NamedTuple


class Component(NamedTuple):
    """A kind of weight: `group` is the row of the printed table that shows it."""

    label: str
    group: str
    why: str
    source: str


_VASWANI = "Vaswani et al. 2017"
_MLA = "DeepSeek-AI 2024 (DeepSeek-V2), §2.1"
_SHARED = "Dai et al. 2024, §3.2"
_HEADS = f"{_VASWANI}, §3.2.2; Ainslie et al. 2023 for K < N"
_BIAS = "every torch.nn.Linear with a bias; GPT-2's released model.py, conv1d"

#: The rows of the printed table, in order.
GROUPS = (
    "token embedding",
    "embedding projection",
    "positions",
    "query",
    "key",
    "value",
    "latent projections",
    "output projection",
    "linear attention",
    "router",
    "up-projection",
    "gate",
    "down-projection",
    "biases",
    "norms",
    "sinks",
    "unembedding",
)

#: Positions that no table holds: why they store nothing, and who says so.
UNSTORED_POSITIONS = {
    "rotary": ("rotations of query and key inside attention: nothing is stored", "Su et al. 2021, §3"),
    "sinusoidal": ("fixed sinusoids: nothing is stored", f"{_VASWANI}, §3.5"),
    "alibi": ("scores fall with the distance, by a slope for each head: nothing is stored", "Press et al. 2022, §3"),
    "none": ("the model is told no positions", ""),
}

#: Every component key (as in JSON), with its group.
COMPONENTS = {
    "embedding": Component(
        "token embedding",
        "token embedding",
        "one row of width D for each of the V tokens",
        f"{_VASWANI}, §3.4",
    ),
    "embedding_proj": Component(
        "embedding projection",
        "embedding projection",
        "rows of width W are widened to D, and narrowed back before the unembedding",
        "Zhang et al. 2022, OPT's released code",
    ),
    "positions": Component(
        "positions", "positions", "one learned row of width D for each of the C positions", "Radford et al. 2018, §4.1"
    ),
    "attn_q": Component("query", "query", "each layer reads D into N query heads of size H", _HEADS),
    "attn_k": Component("key", "key", "each layer reads D into K key heads of size H", _HEADS),
    "attn_v": Component("value", "value", "each layer reads D into K value heads of size H", _HEADS),
    "attn_o": Component(
        "output projection", "output projection", "each layer writes N heads of size H back into D", _HEADS
    ),
    "attn_gate": Component(
        "gate of attention", "gate", "each layer weights what N heads of size H say by sigmoids", "Qiu et al. 2025"
    ),
    "mla_q_a": Component("query, down", "latent projections", "each layer narrows D to a latent query of Rq", _MLA),
    "mla_q_b": Component("query, up", "latent projections", "N queries of size Hn+Hr from the latent Rq", _MLA),
    "mla_kv_a": Component(
        "key/value, down", "latent projections", "D to the latent R that is cached, and one rotated key of Hr", _MLA
    ),
    "mla_kv_b": Component(
        "key/value, up", "latent projections", "N keys of size Hn and values of size Hv from the latent R", _MLA
    ),
    "linear_attn": Component(
        "linear attention",
        "linear attention",
        "query, key, value, gate, decays, convolution and output of a gated delta rule",
        "Yang et al. 2025 (Gated DeltaNet)",
    ),
    "router": Component(
        "router", "router", "each layer scores its E experts for each token", "Jiang et al. 2024, §2.1"
    ),
    "mlp_up": Component("up-projection", "up-projection", "each layer widens D to F", f"{_VASWANI}, §3.3"),
    "experts_up": Component(
        "up-projection of experts", "up-projection", "each of E experts widens D to Fe", "Jiang et al. 2024, §2.1"
    ),
    "mlp_gate": Component("gate", "gate", "a second widening from D to F gates the first", "Shazeer 2020, §2"),
    "experts_gate": Component(
        "gate of experts", "gate", "each of E experts has its own gate from D to Fe", "Jiang et al. 2024, §2.1"
    ),
    "shared_experts_up": Component(
        "up-projection of shared experts", "up-projection", "experts that every token uses widen D to Fs", _SHARED
    ),
    "shared_experts_gate": Component(
        "gate of shared experts", "gate", "experts that every token uses have a gate from D to Fs", _SHARED
    ),
    "mlp_down": Component("down-projection", "down-projection", "each layer narrows F to D", f"{_VASWANI}, §3.3"),
    "experts_down": Component(
        "down-projection of experts", "down-projection", "each of E experts narrows Fe to D", "Jiang et al. 2024, §2.1"
    ),
    "shared_experts_down": Component(
        "down-projection of shared experts", "down-projection", "experts that every token uses narrow Fs to D", _SHARED
    ),
    "shared_expert_gate": Component(
        "gate on shared experts", "router", "one score for each token weights what the shared experts say", _SHARED
    ),
    "attn_q_bias": Component("query bias", "biases", "one number for each query output", _BIAS),
    "attn_k_bias": Component("key bias", "biases", "one number for each key output", _BIAS),
    "attn_v_bias": Component("value bias", "biases", "one number for each value output", _BIAS),
    "attn_o_bias": Component("output bias", "biases", "one number for each of D outputs", _BIAS),
    "mla_q_a_bias": Component("query bias, down", "biases", "one number for each of Rq outputs", _BIAS),
    "mla_kv_a_bias": Component("key/value bias, down", "biases", "one number for each of R+Hr outputs", _BIAS),
    "router_bias": Component("router bias", "biases", "one number for each of E scores", _BIAS),
    "experts_bias": Component("biases of experts", "biases", "one number for each output of each expert", _BIAS),
    "mlp_up_bias": Component("up bias", "biases", "one number for each of F outputs", _BIAS),
    "mlp_gate_bias": Component("gate bias", "biases", "one number for each of F outputs", _BIAS),
    "mlp_down_bias": Component("down bias", "biases", "one number for each of D outputs", _BIAS),
    **{
        f"shared_experts_{key}_bias": Component(
            f"{key} bias of shared experts", "biases", f"one for each of {of}", _BIAS
        )
        for key, of in (("up", "Fs outputs"), ("gate", "Fs outputs"), ("down", "D outputs"))
    },
    "lm_head_bias": Component("unembedding bias", "biases", "one number for each of V scores", _BIAS),
    "norm_weight": Component("norm weights", "norms", "one gain for each of D, in every norm", "Ba et al. 2016, §3"),
    "qk_norm": Component(
        "query and key norms", "norms", "gains of the norms inside attention", "Henry et al. 2020; Dehghani et al. 2023"
    ),
    "attn_sinks": Component("attention sinks", "sinks", "one score of nothing for each of N heads", "Xiao et al. 2024"),
    "norm_bias": Component("norm biases", "norms", "one shift for each of D, in every LayerNorm", "Ba et al. 2016, §3"),
    "unembedding": Component(
        "unembedding", "unembedding", "D back to a score for each of the V tokens", "Radford et al. 2018, §3.1"
    ),
}


def component_label(key: str) -> str:
    """A component by its name; what is none of the parameter ledger's, as an activation's, as it is."""
    return COMPONENTS[key].label if key in COMPONENTS else key
