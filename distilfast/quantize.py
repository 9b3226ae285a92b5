"""int8: the channel shift and the outlier channels of each linear's input.

The kernels quantise in groups of K, each with a scale of its own (csrc/cpu/linear/int8_format.h,
csrc/cuda/linear/int8_groups.cuh). Two things keep the groups of a trained model easy to quantise. Its channels have
means far from zero: with the channel shift c, x Wᵀ = (x − c) Wᵀ + c Wᵀ, and the last term goes into the bias, exactly.
And a few channels are up to hundreds of times larger than their neighbours (Dettmers et al., LLM.int8(), arXiv
2208.07339; Bondarenko et al., arXiv 2109.12948): the kernels spread them over a group by a rotation, and where that is
not enough these outlier channels are multiplied in fp32 (on a GPU bf16), in x and in W.

Both are properties of the weights rather than of the text: they are measured on random ids, so that a checkpoint needs
no data. Whatever they are, they cost accuracy only, never correctness. Text has other means than random ids, so a
channel's mean m is shrunk by the variance v around it: the channel shift is m · m² / (m² + v). (With m itself int8's
error was a tenth larger on a trained model, and with no shift a fifth on one whose channels are off zero.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from distilfast import operations
from distilfast.arithmetic import LINEAR_BLOCK, exp, matmul
from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig

VERSION = 4
"""Of what ``channels`` makes: raise it with every change, since packed weights are kept on disk."""

_LENGTHS = (32, 64, 96)


def outlier_channels(k: int) -> int:
    """How many channels of K the CPU keeps in fp32: none for the sizes of a base model, else one in 96, at least 8."""
    return 0 if k in (768, 3072) else min(k, max(8, k // 96))


def channels(
    config: ModelConfig, tensors: Mapping[str, np.ndarray], count: Callable[[int], int] = outlier_channels
) -> dict[str, np.ndarray]:
    """What int8 needs beside the weights, for each linear of the encoder by its canonical name; the head's stay bf16.

    ``<name>.channel_shift`` float32 [K]; ``<name>.outlier_channels`` float32 [count(K)], ascending channel numbers; and
    ``<name>.bias`` float32 [N], which replaces the checkpoint's. ``tensors``: float32, canonical names. ``count``: how
    many of K channels are outlier channels.
    """
    made = {}
    for name, x in _inputs(config, dict(tensors)):
        mean, square = x.mean(axis=0), np.square(x).mean(axis=0)  # m² + v
        reach = np.abs(x - mean).max(axis=0)
        shift = mean * np.divide(mean**2, square, out=np.zeros_like(mean), where=square > 0)
        outliers = np.argsort(-reach, kind="stable")[: count(len(reach))]
        made[f"{name}.channel_shift"] = shift
        made[f"{name}.outlier_channels"] = np.sort(outliers).astype(np.float32)
        correction = matmul(shift[None], tensors[f"{name}.weight"], LINEAR_BLOCK)[0]
        made[f"{name}.bias"] = tensors[f"{name}.bias"] + correction
    return made


def _inputs(config: ModelConfig, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Every linear of the encoder and its input [T, K] where random ids go through the model."""
    generator = np.random.default_rng(0)
    lengths = [min(length, config.max_positions) for length in _LENGTHS]
    batch = PackedBatch.from_sequences([generator.integers(config.vocab_size, size=n).tolist() for n in lengths])

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return operations.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: np.ndarray, residual: np.ndarray, name: str) -> np.ndarray:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return operations.add_layer_norm(x, residual, weight, bias, config.layer_norm_eps)

    x = operations.embed(batch, tensors, config.layer_norm_eps)
    for at in (f"layer.{i}." for i in range(config.num_layers)):
        yield at + "qkv", x
        context, _ = operations.attention(dense(x, at + "qkv"), batch.cu_seqlens, config.num_heads)
        yield at + "attention_out", context
        x = norm(dense(context, at + "attention_out"), x, at + "attention_norm")
        yield at + "ffn_in", x
        activated = _roughly(config.activation, dense(x, at + "ffn_in"))
        yield at + "ffn_out", activated
        x = norm(dense(activated, at + "ffn_out"), x, at + "output_norm")


def _roughly(activation: str, x: np.ndarray) -> np.ndarray:
    """The activation, GELU by its logistic form: good to 0.02, and means need no more."""
    return x / (1 + exp(-1.702 * x)) if activation == "gelu" else operations.ACTIVATIONS[activation](x)
