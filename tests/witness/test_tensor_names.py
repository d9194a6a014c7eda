"""The rules that assign the tensors of a transformers class to components, one by one."""

from types import SimpleNamespace

import pytest

from gptcalc.witness.tensor_names import active, components, components_of, itemise

torch = pytest.importorskip("torch")


def _meta(**shapes: tuple[int, ...]) -> dict[str, "torch.Tensor"]:
    return {name.replace("__", "."): torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_a_tensor_that_no_rule_knows_is_a_component_of_its_own_name() -> None:
    """It is reported, for no inventory has such a component."""
    unknown = dict(itemise(_meta(transformer__extra__weight=(3,))))

    assert unknown == {"unknown: transformer.extra.weight": 3}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.indexer.k_norm.weight",
        "model.layers.0.input_layernorm.mlp.fc1.weight",
        "model.layers.0.self_attn.mix_proj.weight",
        "model.layers.0.mamba.out_proj.weight",
        "transformer.attentions.0.q_lin.weight",
    ],
)
def test_a_known_ending_in_an_unknown_module_is_unknown(name: str) -> None:
    """Only whole paths are known: a norm of an indexer is not taken for one of the layer."""
    assert components_of(name) == (f"unknown: {name}",)


def test_one_third_each_where_nothing_says_more() -> None:
    """Query, key and value of GPT-2 are as wide as the model."""
    named = dict(itemise(_meta(transformer__h__0__attn__c_attn__weight=(4, 12))))

    assert named == {"attn_q": 16, "attn_k": 16, "attn_v": 16}


def test_grouped_heads_share_a_fused_tensor_unequally() -> None:
    """The output projection takes in as much as the queries are wide; keys and values have the rest."""
    named = components(
        _meta(
            transformer__h__0__attn__c_attn__weight=(10, 6),
            transformer__h__0__attn__c_attn__bias=(10,),
            transformer__h__0__attn__c_proj__weight=(6, 6),
        )
    )

    assert named == {
        "attn_q": 36,
        "attn_k": 12,
        "attn_v": 12,
        "attn_q_bias": 6,
        "attn_k_bias": 2,
        "attn_v_bias": 2,
        "attn_o": 36,
    }


def test_queries_wider_than_the_model() -> None:
    """Heads times their size need not be the width of the model."""
    named = components(
        _meta(model__layers__0__self_attn__qkv_proj__weight=(14, 5), model__layers__0__self_attn__o_proj__weight=(5, 8))
    )

    assert named == {"attn_q": 40, "attn_k": 15, "attn_v": 15, "attn_o": 40}


def test_a_module_of_linear_attention_is_one_component() -> None:
    """Its projections have the names of attention's; the decay beside them tells it apart."""
    named = components(
        _meta(model__layers__0__self_attn__A_log=(3,), model__layers__0__self_attn__q_proj__weight=(4, 4))
    )

    assert named == {"linear_attn": 19}


MIXTURE = {
    "model__layers__0__mlp__gate__weight": (4, 2),
    "model__layers__0__mlp__gate__e_score_correction_bias": (4,),
    "model__layers__0__mlp__experts__gate_up_proj": (4, 6, 2),
    "model__layers__0__mlp__experts__gate_up_proj_bias": (4, 6),
    "model__layers__0__mlp__experts__down_proj": (4, 2, 3),
    "model__layers__0__mlp__shared_experts__up_proj__weight": (3, 2),
}


def test_a_mixture_by_component() -> None:
    """Halves of the fused projection, all biases of experts as one, the router apart from them."""
    assert components(_meta(**MIXTURE)) == {
        "router": 8,
        "router_bias": 4,
        "experts_gate": 24,
        "experts_up": 24,
        "experts_bias": 24,
        "experts_down": 24,
        "shared_experts_up": 6,
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_routed_experts": 4, "moe_k": 1}, 18 + 96 // 4),
        ({"ffn_config": SimpleNamespace(moe_num_experts=4, moe_top_k=3)}, 18 + 96 // 4 * 3),
        ({"num_experts": 4, "num_experts_per_tok": 2, "zero_expert_num": 2}, None),
        ({"num_experts": 4, "moe_topk": [1, 2]}, None),
    ],
)
def test_a_token_uses_its_own_experts_and_all_else(config: dict[str, object], expected: int | None) -> None:
    """Under whatever names the config has for them; not guessed where it differs by layer or token."""
    assert active(_meta(**MIXTURE), SimpleNamespace(**config)) == expected
