"""The reference decoder in PyTorch: it runs, and its tensors are the independent evidence for the inventory.

A kind of part is one class here, entered in the table of `itemised.register`. Nothing here reads `gptcalc.parts` or the
inventory: the modules must be able to disagree.
"""

from __future__ import annotations

from gptcalc.modules.attention import MultiHeadAttention
from gptcalc.modules.block import Block
from gptcalc.modules.checks import InputRangeError, InputValueError
from gptcalc.modules.decoder import Decoder, DecoderOutput, Trunk, Unembedding, build
from gptcalc.modules.delta import GatedDeltaNet
from gptcalc.modules.embedding import GPTEmbedding, GPTEmbeddingConfig, TokenEmbedding
from gptcalc.modules.itemised import Itemised, register
from gptcalc.modules.latent import LatentAttention
from gptcalc.modules.mixture import Experts, MixtureMLP
from gptcalc.modules.mlp import DenseMLP, GatedMLP
from gptcalc.modules.norm import LayerNorm, RMSNorm
from gptcalc.modules.passing import KVCache
from gptcalc.modules.positions import PositionalEmbedding, SinusoidalPositionalEmbedding

__all__ = [
    "Block",
    "Decoder",
    "DecoderOutput",
    "DenseMLP",
    "Experts",
    "GPTEmbedding",
    "GPTEmbeddingConfig",
    "GatedDeltaNet",
    "GatedMLP",
    "InputRangeError",
    "InputValueError",
    "Itemised",
    "KVCache",
    "LatentAttention",
    "LayerNorm",
    "MixtureMLP",
    "MultiHeadAttention",
    "PositionalEmbedding",
    "RMSNorm",
    "SinusoidalPositionalEmbedding",
    "TokenEmbedding",
    "Trunk",
    "Unembedding",
    "build",
    "register",
]
