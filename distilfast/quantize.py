"""int8: what is taken off a linear's input before it is rounded, and which of its channels are not rounded at all.

The kernels round in groups of K, each with a scale of its own (csrc/cpu/linear/int8_groups.h,
csrc/cuda/linear/int8_groups.cuh). Two things make the groups of a trained model worth rounding. Its channels have
means far from zero: with the ``centre`` c, x Wᵀ = (x − c) Wᵀ + c Wᵀ, and the last term goes into the bias, exactly. And
a few channels are up to hundreds of times larger than their neighbours (Dettmers et al., LLM.int8(), arXiv 2208.07339;
Bondarenko et al., arXiv 2109.12948): the ``wide`` ones are multiplied in fp32 (on a GPU bf16), in x and in W.

Both are properties of the weights rather than of the text: they are measured on random ids, so that a checkpoint needs
no data. Whatever they are, they cost accuracy only, never correctness. Text has other means than random ids: a
channel's mean m is therefore believed only as far as it stands out of the variance v, and its centre is
m · m² / (m² + v). (With m itself int8's error was a tenth larger on a trained model, and with no centre a fifth on one
whose channels are off zero.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from distilfast import reference
from distilfast.arithmetic import LINEAR_BLOCK, exp, matmul
from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig

VERSION = 3
"""Of what ``channels`` makes: raise it with every change, since packed weights are kept on disk."""

_LENGTHS = (32, 64, 96)


def wide_channels(k: int) -> int:
    """How many channels of K the CPU does not round: one in 96, and eight at least where there are as many."""
    return min(k, max(8, k // 96))


def channels(
    config: ModelConfig, tensors: Mapping[str, np.ndarray], wide: Callable[[int], int] = wide_channels
) -> dict[str, np.ndarray]:
    """What int8 needs beside the weights, for each linear of the encoder by its canonical name; the head's stay bf16.

    ``<name>.centre`` float32 [K]; ``<name>.wide`` float32 [wide(K)], channel numbers, ascending; and ``<name>.bias``
    float32 [N], which takes the place of the checkpoint's. ``tensors``: float32, canonical names. ``wide``: how many
    channels of K are not rounded.
    """
    made = {}
    for name, x in _inputs(config, dict(tensors)):
        mean, square = x.mean(axis=0), np.square(x).mean(axis=0)  # m² + v
        reach = np.abs(x - mean).max(axis=0)
        centre = mean * np.divide(mean**2, square, out=np.zeros_like(mean), where=square > 0)
        widest = np.argsort(-reach, kind="stable")[: wide(len(reach))]
        made[f"{name}.centre"] = centre
        made[f"{name}.wide"] = np.sort(widest).astype(np.float32)
        shift = matmul(centre[None], tensors[f"{name}.weight"], LINEAR_BLOCK)[0]
        made[f"{name}.bias"] = tensors[f"{name}.bias"] + shift
    return made


def _inputs(config: ModelConfig, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Every linear of the encoder and its input [T, K] where random ids go through the model."""
    generator = np.random.default_rng(0)
    lengths = [min(length, config.max_positions) for length in _LENGTHS]
    batch = PackedBatch.from_sequences([generator.integers(config.vocab_size, size=n).tolist() for n in lengths])

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return reference.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: np.ndarray, residual: np.ndarray, name: str) -> np.ndarray:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return reference.add_layer_norm(x, residual, weight, bias, config.layer_norm_eps)

    x = reference.embed(batch, tensors, config.layer_norm_eps)
    for at in (f"layer.{i}." for i in range(config.num_layers)):
        yield at + "qkv", x
        context, _ = reference.attention(dense(x, at + "qkv"), batch.cu_seqlens, config.num_heads)
        yield at + "attention_out", context
        x = norm(dense(context, at + "attention_out"), x, at + "attention_norm")
        yield at + "ffn_in", x
        activated = _roughly(config.activation, dense(x, at + "ffn_in"))
        yield at + "ffn_out", activated
        x = norm(dense(activated, at + "ffn_out"), x, at + "output_norm")


def _roughly(activation: str, x: np.ndarray) -> np.ndarray:
    """The activation, GELU by its logistic form: good to 0.02, and means need no more."""
    return x / (1 + exp(-1.702 * x)) if activation == "gelu" else reference.ACTIVATIONS[activation](x)
