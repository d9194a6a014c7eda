"""The decoder that a spec describes, as a module that runs: the independent witness of the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gptcalc.errors import UnknownNameError
from gptcalc.modules import ops
from gptcalc.modules.checks import IGNORED_TARGET, InputValueError, check_targets
from gptcalc.modules.embedding import Beside, GPTEmbedding, GPTEmbeddingConfig
from gptcalc.modules.itemised import Dims, Itemised, empty, init_constant, init_normal, make, register
from gptcalc.modules.passing import KVCache, Pass
from gptcalc.spec import Spec

#: What may be computed again in the backward pass.
CHECKPOINTING = ("none", "full", "selective")


def build(
    spec: Spec, *, attention: str | Sequence[str] = "auto", checkpointing: str = "none", chunked_loss: int = 1
) -> Decoder:
    """The decoder of `spec` on the default device; under `torch.device("meta")` it has shapes and no values.

    Names and shapes are those of the transformers class, so that its state dict loads strictly. `attention` is the
    backend that every layer uses (see `ops.attention`), or those of the groups of layers, one for each. With
    `checkpointing` each block (`full`), or of its attention what is made of query, key and value (`selective`), is
    computed again in the backward pass of training, instead of kept. Of more than one chunk of the tokens
    (`chunked_loss`) logits and loss are computed one after the other, and again in the backward pass.
    """
    return Decoder(spec, attention=attention, checkpointing=checkpointing, chunked_loss=chunked_loss)


class DecoderOutput(NamedTuple):
    """`logits` (B, T, V), and the mean cross entropy in nats where targets were given."""

    logits: Tensor
    loss: Tensor | None


def _check_cache(x: Tensor, cache: KVCache | None, start: int) -> None:
    """Whether the tokens of x (B, T, D) may stand from `start` on."""
    batch, length = x.shape[:2]
    if start and cache is None:
        raise InputValueError(
            f"start: read {start} without a cache; allowed: 0, since nothing is known of what is before"
        )
    if start and length != 1:
        raise InputValueError(f"input_ids: read {length} tokens from position {start} on; allowed: one")
    if cache is not None:
        cache.check(batch, start + length)


@register("unembedding")
class Unembedding(Itemised):
    """D to V: a score for each token. Tied (Press & Wolf 2017): its weight is the token table, given by the decoder.

    Its input may be narrower (`d_embed`). Scores are multiplied by `multiplier`, then bounded: c·tanh(score/c) for a
    `softcap` c (Gemma 2).
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        tied: bool,
        bias: bool = False,
        d_embed: int | None = None,
        multiplier: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        """Allocate and initialise what is its own."""
        super().__init__()
        self.tied, self.multiplier, self.softcap = tied, multiplier, softcap
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("weight", None if tied else empty(dims.n_vocab, d_embed or dims.d_model))
        self.register_parameter("bias", empty(dims.n_vocab) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows from N(0, 0.02²), bias zero; a tied table belongs to the input stage."""
        if self.weight is not None and not self.tied:
            init_normal(self.weight)
        init_constant(self.bias, 0.0)

    @property
    def matrix(self) -> nn.Parameter:
        """(V, D)."""
        if self.weight is None:
            raise RuntimeError("a tied unembedding has no weight until the decoder ties it")
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to logits (B, T, V)."""
        # Only to dense rows does `linear` add a bias in the kernel that multiplies.
        logits = functional.linear(x if self.bias is None else x.contiguous(), self.matrix, self.bias)
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        if self.softcap is not None:
            logits = logits / self.softcap
            logits = torch.tanh(logits)
            logits = logits * self.softcap
        return logits

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The matrix, tied or not, and the bias."""
        yield "unembedding", self.matrix
        if self.bias is not None:
            yield "lm_head_bias", self.bias


class Trunk(GPTEmbedding):
    """The input stage, the layers and the final norm, in one container as published checkpoints have them."""

    def __init__(self, spec: Spec, attention: str | Sequence[str] = "auto", checkpointing: str = "none") -> None:
        """Build every layer of every group."""
        if checkpointing not in CHECKPOINTING:
            raise UnknownNameError.near("checkpointing", str(checkpointing), CHECKPOINTING)
        positions = "" if spec.positions is None else spec.positions.name
        super().__init__(_input_config(spec), names=(spec.embedding.name, positions), beside=_beside(spec))
        dims = Dims.of(spec)
        backends = [attention] * len(spec.layers) if isinstance(attention, str) else list(attention)
        for backend in backends:
            ops.check_backend(backend)
        pairs = zip(spec.layers, backends, strict=True)
        self.checkpointing = checkpointing
        self.attention = [backend for group, backend in pairs for _ in range(group.n_layers)]
        self.layers_name = spec.layers_name
        groups = [(group.n_layers, group.block.model_dump()) for group in spec.layers]
        blocks = [make(block, dims) for n_layers, block in groups for _ in range(n_layers)]
        self.attach(spec.layers_name, nn.ModuleList(blocks))
        self.norm_name = None if spec.final_norm is None else spec.final_norm.name
        if spec.final_norm is not None:
            self.attach(spec.final_norm.name, make(spec.final_norm.model_dump(), dims))
        self.projection_name = None if spec.output_projection is None else spec.output_projection.name
        if spec.output_projection is not None:
            self.attach(spec.output_projection.name, make(spec.output_projection.model_dump(), dims))

    @property
    def list_of_layers(self) -> nn.ModuleList:
        """The layers, the first one first."""
        layers = self.get_submodule(self.layers_name)
        if not isinstance(layers, nn.ModuleList):
            raise TypeError(f"{self.layers_name} is a {type(layers).__name__}, not the list of layers")
        return layers

    def forward(
        self,
        input_ids: Tensor,
        use_layer_norm: bool = False,  # noqa: FBT001, FBT002  as GPTEmbedding
        *,
        start: int = 0,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Token IDs (B, T) to the vectors (B, T, D) that the unembedding reads."""
        x = super().forward(input_ids, use_layer_norm, start=start)
        _check_cache(x, cache, start)
        shared = Pass(start)
        for layer, block in enumerate(self.list_of_layers):
            own = shared.of_layer(self.attention[layer], again=self.training and self.checkpointing == "selective")
            if self.training and self.checkpointing == "full":
                x = checkpoint(block, x, own, use_reentrant=False)
            else:
                x = block(x, own, None if cache is None else cache.layers[layer])
        for name in self._last:
            x = self.child(name)(x)
        return x

    @property
    def _last(self) -> tuple[str, ...]:
        """The final norm and the projection, where there are any."""
        return tuple(name for name in (self.norm_name, self.projection_name) if name is not None)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Input stage, layers, final norm, projection."""
        yield from super().itemise()
        for block in self.list_of_layers:
            if isinstance(block, Itemised):
                yield from block.itemise()
        for name in self._last:
            yield from self.child(name).itemise()


def _input_config(spec: Spec) -> GPTEmbeddingConfig:
    """The hyperparameters that every input stage has; what only some have is `_beside`."""
    if spec.embedding.kind != "token_embedding":
        raise UnknownNameError.near("kind of input stage", spec.embedding.kind, ["token_embedding"])
    fields: dict[str, Any] = Dims.of(spec)._asdict() | spec.embedding.model_dump(
        exclude={"kind", "name", "multiplier", "d_embed"}
    )
    if spec.positions is None:
        return GPTEmbeddingConfig(positions="none", **fields)
    return GPTEmbeddingConfig(positions=spec.positions.kind, **fields)


def _beside(spec: Spec) -> Beside:
    """The other fields of the tables, and the parts between token rows and the sum with positions."""
    token = spec.embedding.model_dump(include={"multiplier", "d_embed"})
    position = {} if spec.positions is None else spec.positions.model_dump(exclude={"kind", "name"})
    between = [part.model_dump() for part in (spec.embedding_projection, spec.embedding_norm) if part is not None]
    return Beside(token, position, between)


class Decoder(Itemised):
    """Token IDs to logits; children bear the published names. Everything follows the parameters' device and dtype."""

    def __init__(
        self,
        spec: Spec,
        *,
        attention: str | Sequence[str] = "auto",
        checkpointing: str = "none",
        chunked_loss: int = 1,
    ) -> None:
        """Build the trunk and the unembedding, and tie them where the spec says so."""
        super().__init__()
        self.n_vocab, self.chunked_loss = spec.n_vocab, chunked_loss
        self.trunk_name, self.unembedding_name = spec.trunk, spec.unembedding.name
        self.attach(spec.trunk, Trunk(spec, attention, checkpointing))
        self.attach(spec.unembedding.name, make(spec.unembedding.model_dump(), Dims.of(spec)))
        self.tie()

    @property
    def trunk(self) -> Trunk:
        """All but the unembedding."""
        trunk = self.child(self.trunk_name)
        if not isinstance(trunk, Trunk):
            raise TypeError(f"{self.trunk_name} is a {type(trunk).__name__}, not a Trunk")
        return trunk

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        start: int = 0,
        last_only: bool = False,
    ) -> DecoderOutput:
        """Logits (B, T, V) for IDs (B, T), and the loss where `targets` (B, T) are given.

        `targets[b, t]` is the token that `logits[b, t]` should predict (shifted by the caller, as in nanoGPT); −100
        does not count. The loss is a mean over what counts, computed in fp32; where it is in chunks, no logits are
        left. Raises as `GPTEmbedding.forward` does.

        With a `cache` (of `make_cache`) keys and values are kept there: the first pass takes the prompt; each later one
        a single token, the one at position `start`, and attends to all before it. `last_only` gives the logits of the
        last token alone, (B, 1, V).
        """
        x: Tensor = self.trunk(input_ids, start=start, cache=cache)
        if last_only:
            x = x[:, -1:]
        if targets is not None:
            check_targets(targets, input_ids, self.n_vocab)
            if self.chunked_loss > 1:
                return DecoderOutput(x.new_empty(0, self.n_vocab), self._loss_in_chunks(x, targets))
        logits: Tensor = self.child(self.unembedding_name)(x)
        if targets is None:
            return DecoderOutput(logits, None)
        flat = logits.float().flatten(0, 1)
        return DecoderOutput(logits, functional.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED_TARGET))

    def _loss_in_chunks(self, x: Tensor, targets: Tensor) -> Tensor:
        """The mean over vectors (B, T, D), of which no more than a chunk's logits exist at a time."""
        if self.chunked_loss > targets.numel():
            raise InputValueError(
                f"chunked_loss: read {self.chunked_loss}; allowed: from 1 to {targets.numel()}, the number of tokens"
            )
        pairs = zip(x.flatten(0, 1).chunk(self.chunked_loss), targets.flatten().chunk(self.chunked_loss), strict=True)
        losses = [checkpoint(self._summed_loss, rows, wanted, use_reentrant=False) for rows, wanted in pairs]
        return torch.stack(losses).sum() / (targets != IGNORED_TARGET).sum()

    def _summed_loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Vectors (n, D) and targets (n) to the sum of their cross entropies."""
        logits: Tensor = self.child(self.unembedding_name)(rows)
        wide = logits.float()
        return functional.cross_entropy(wide, targets, ignore_index=IGNORED_TARGET, reduction="sum")

    def make_cache(self, batch: int, seq: int, dtype: torch.dtype | None = None) -> KVCache:
        """Room for the keys and values of `batch` sequences of `seq` tokens, in the weights' dtype or in another."""
        dtype = self.trunk.token_weight.dtype if dtype is None else dtype
        blocks: Iterator[Any] = iter(self.trunk.list_of_layers)
        return KVCache(tuple(block.make_cache(batch, seq, dtype) for block in blocks))

    def tie(self) -> None:
        """Let a tied unembedding use the token table: one parameter, two names."""
        head = self.child(self.unembedding_name)
        if isinstance(head, Unembedding) and head.tied:
            head.weight = self.trunk.token_weight

    def reset_parameters(self) -> None:
        """Draw every weight anew: what a decoder needs that was built on meta and moved by `to_empty`."""
        for module in self.modules():
            if module is not self and isinstance(module, Itemised):
                module.reset_parameters()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: FBT001, FBT002  torch's
        """Copy (or `assign`) the tensors; a tie survives assignment."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.tie()
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Decoder:  # noqa: FBT001, FBT002  torch's
        """Move or cast; leaving the meta device makes new parameters, so tie again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tie()
        return self

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Trunk, then unembedding: a tied one is yielded too, with the token table's tensor."""
        yield from self.trunk.itemise()
        yield from self.child(self.unembedding_name).itemise()

    def active_elements(self) -> int:
        """Parameters that one token uses, each once: whole tables, and of the experts those that it is routed to."""
        seen: set[int] = set()
        total = 0
        for module in self.modules():
            used, of = module.active if isinstance(module, Itemised) else (1, 1)
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    total += parameter.numel() // of * used
        return total
