"""The KV cache: decoding token by token gives what one pass over the whole sequence gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from conftest import randomised
from steps import with_attention

from gptcalc.errors import GptcalcError
from gptcalc.modules import build

if TYPE_CHECKING:
    from conftest import Toy


@pytest.mark.parametrize("last_only", [False, True])
def test_decoding_equals_the_full_pass(toy: Toy, *, last_only: bool) -> None:
    """After a prompt of five tokens, each further token's logits equal those of one pass over everything."""
    decoder, tokens = toy.decoder().eval(), toy.tokens(2, 11)
    with torch.no_grad():
        whole = decoder(tokens).logits
        cache = decoder.make_cache(2, 11)
        parts = [decoder(tokens[:, :5], cache=cache, last_only=last_only).logits]
        parts += [
            decoder(tokens[:, at : at + 1], cache=cache, start=at, last_only=last_only).logits for at in range(5, 11)
        ]
    assert parts[0].shape[1] == (1 if last_only else 5)
    torch.testing.assert_close(torch.cat(parts, 1), whole[:, 4 if last_only else 0 :], rtol=1e-5, atol=1e-5)


def test_cache_has_the_shapes_of_every_layer(grouped_fused_toy: Toy) -> None:
    """Each layer keeps keys and values (B, K, T, H), in the weights' dtype or the one that is asked for."""
    decoder = grouped_fused_toy.decoder()
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        cache = decoder.make_cache(3, 13, dtype)
        assert len(cache.layers) == 2
        for tensor in (tensor for layer in cache.layers for tensor in (layer.key, layer.value)):
            assert (tensor.shape, tensor.dtype) == ((3, 2, 13, 8), expected)


def test_cache_of_another_dtype_is_read_in_that_of_the_model(llama_toy: Toy) -> None:
    """A bf16 cache of an fp32 model gives fp32 logits, near those without a cache and not equal to them."""
    decoder, tokens = llama_toy.decoder().eval(), llama_toy.tokens(1, 9)
    with torch.no_grad():
        whole = decoder(tokens).logits[:, -1:]
        cache = decoder.make_cache(1, 9, torch.bfloat16)
        decoder(tokens[:, :8], cache=cache)
        last = decoder(tokens[:, 8:], cache=cache, start=8).logits
    assert last.dtype == torch.float32
    torch.testing.assert_close(last, whole, rtol=0.1, atol=0.1)
    assert not torch.equal(last, whole)


@pytest.mark.parametrize(
    ("shape", "start", "words"),
    [
        ((1, 2), 3, "read 2 tokens from position 3 on; allowed: one"),
        ((2, 4), 0, "read 2 sequences up to token 4; allowed: 1 of up to 6 tokens"),
        ((1, 7), 0, "read 1 sequences up to token 7; allowed: 1 of up to 6 tokens"),
        ((1, 1), 6, "read 1 sequences up to token 7"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(llama_toy: Toy, shape: tuple[int, int], start: int, words: str) -> None:
    """Tokens that the cache has no room for are an error in words."""
    decoder = llama_toy.decoder()
    with pytest.raises(GptcalcError, match=words), torch.no_grad():
        decoder(llama_toy.tokens(*shape), cache=decoder.make_cache(1, 6), start=start)


def test_a_later_position_needs_a_cache(llama_toy: Toy) -> None:
    """A pass cannot start where nothing is known of what is before."""
    with pytest.raises(GptcalcError, match="start: read 3 without a cache; allowed: 0"):
        llama_toy.decoder()(llama_toy.tokens(1, 1), start=3)


def test_learned_positions_end_for_a_cache_too(gpt2_toy: Toy) -> None:
    """A token beyond the table of positions is refused, wherever the pass starts."""
    decoder = gpt2_toy.decoder()
    with pytest.raises(GptcalcError, match="a sequence of 20 tokens; allowed: at most n_ctx=19"), torch.no_grad():
        decoder(gpt2_toy.tokens(1, 1), cache=decoder.make_cache(1, 25), start=19)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("prompt", [3, 4, 5, 9])
def test_a_window_keeps_no_more_tokens_than_it_sees(llama_toy: Toy, prompt: int, *, chunked: bool) -> None:
    """A layer with a window of four has room for four tokens, and decodes as one pass over all would."""
    spec = with_attention(llama_toy.spec, window=4, chunked=chunked)
    decoder, tokens = randomised(build(spec)).eval(), llama_toy.tokens(2, 14)
    cache = decoder.make_cache(2, 14)
    assert {layer.key.shape for layer in cache.layers} == {(2, 2, 4, 10)}
    with torch.no_grad():
        whole = decoder(tokens).logits
        parts = [decoder(tokens[:, :prompt], cache=cache).logits]
        parts += [decoder(tokens[:, at : at + 1], cache=cache, start=at).logits for at in range(prompt, 14)]
        blind = randomised(build(with_attention(llama_toy.spec, window=4, chunked=not chunked))).eval()
        blind.load_state_dict(decoder.state_dict())
        assert not torch.allclose(blind(tokens).logits, whole)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
