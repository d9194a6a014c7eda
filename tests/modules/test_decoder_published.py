"""The reference decoder against the published transformers classes, with copied weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from gptcalc.modules import build
from gptcalc.modules.rotary import Rotary

if TYPE_CHECKING:
    from conftest import Toy


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 17), (3, 13)])
def test_logits_equal_the_published_class(published_toy: Toy, batch: int, length: int) -> None:
    """With copied weights, logits and loss equal those of the transformers class to 1e-5 in fp32."""
    published, ours = published_toy.published(), build(published_toy.spec).eval()
    ours.load_state_dict(published.state_dict())
    tokens, targets = published_toy.tokens(batch, length), published_toy.tokens(batch, length).flip(1)
    targets[:, 1:3] = -100
    with torch.no_grad():
        logits, loss = ours(tokens, targets)
        theirs = published(tokens).logits
    assert logits.shape == (batch, length, published_toy.n_vocab)
    assert theirs.abs().max() > 0.5, "logits near zero would prove nothing"
    torch.testing.assert_close(logits, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, functional.cross_entropy(theirs.flatten(0, 1), targets.flatten()))


def test_state_dict_is_that_of_the_published_class(published_toy: Toy) -> None:
    """Names and shapes of the state dict are those of the transformers class, both ways, with nothing else in it."""
    theirs = {name: tensor.shape for name, tensor in published_toy.published().state_dict().items()}
    assert {name: tensor.shape for name, tensor in build(published_toy.spec).state_dict().items()} == theirs


def test_gradients_equal_the_published_class(published_toy: Toy) -> None:
    """With copied weights, every parameter's gradient of the loss equals that of the transformers class."""
    published, ours = published_toy.published(), build(published_toy.spec).eval()
    ours.load_state_dict(published.state_dict())
    tokens, targets = published_toy.tokens(), published_toy.tokens().flip(1)
    ours(tokens, targets).loss.backward()
    functional.cross_entropy(published(tokens).logits.flatten(0, 1), targets.flatten()).backward()
    theirs = {name: parameter.grad for name, parameter in published.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_rotary_equals_transformers() -> None:
    """Angles and rotation are those of transformers' Llama, to the last bit."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(head_dim=10, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    x, query, key = torch.randn(2, 29, 7), torch.randn(2, 3, 29, 10), torch.randn(2, 1, 29, 10)
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(29)[None])
    rotary = Rotary(d_head=10, theta=5000.0)
    angles = rotary.angles(x)
    ours = (rotary.rotate(part.transpose(1, 2), angles).transpose(1, 2) for part in (query, key))
    assert all(map(torch.equal, ours, apply_rotary_pos_emb(query, key, cos, sin)))


def test_partial_rotary_keeps_the_rest() -> None:
    """With a fraction, the first features are rotated like a head of that size and the others pass unchanged."""
    x, query = torch.randn(1, 11, 5), torch.randn(1, 11, 2, 12)
    part, small = Rotary(d_head=12, fraction=0.5), Rotary(d_head=6)
    rotated = part.rotate(query, part.angles(x))
    assert torch.equal(rotated[..., 6:], query[..., 6:])
    assert torch.equal(rotated[..., :6], small.rotate(query[..., :6], small.angles(x)))


def test_rotary_tables_are_computed_once_a_pass(llama_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers of one forward pass share one table of angles, as in transformers."""
    computed = []
    compute = Rotary.angles
    monkeypatch.setattr(Rotary, "angles", lambda self, *where: computed.append(self) or compute(self, *where))
    llama_toy.decoder()(llama_toy.tokens())
    assert len(computed) == 1
