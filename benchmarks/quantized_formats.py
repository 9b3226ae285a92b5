"""What an 8-bit format of the encoder's linears costs in accuracy: int8 and FP8, simulated in numpy for a GPU.

    python -m benchmarks.quantized_formats MODEL [MODEL ...]       a Markdown table for each model
    python -m benchmarks.quantized_formats MODEL --times 3         with three times as many texts

The table also has each format's tensor time at K = 768, that of bf16 being 1, and the bytes of a weight. Outside the
linears all is as csrc/cuda computes it in int8: operands bf16, accumulators, softmax, LayerNorm and the residual stream
fp32. The products of a format are exact, as in int32, or accumulated in fp32. The text is real: every 300th of
CLINC150's test requests and every 30th of XQuAD's paragraphs, cut at 256 tokens. int8 promises a cosine of 0.999 for
each token; csrc/cuda/README.md has the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks import tables, workloads
from distilfast import operations, quantize, reference
from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.tokenizer import Tokenizer
from distilfast.weights import load_weights

PROMISED_COSINE = 0.999
LONGEST = 256  # tokens of a text

Tensors = dict[str, np.ndarray]
Dense = Callable[[np.ndarray, str], np.ndarray]


@dataclass(frozen=True)
class Format:
    """How x and W of a linear are quantised: in groups of K, each with a scale that its largest value sets.

    ``group``: values that share a scale, 0 for all of K. ``rotated``: each group is multiplied by a Hadamard matrix,
    ``signs``: after random signs. ``outliers``: how many channels of K stay bf16.
    """

    name: str
    number: str  # "int8" or "e4m3"
    group: int = 0
    rotated: bool = False
    signs: bool = False
    outliers: Callable[[int], int] = lambda k: 0

    def tensor_time(self, k: int) -> float:
        """Of the tensor cores for K, that of bf16 being 1: 8 bits take half of it, and an outlier channel all."""
        return (0.5 * k + self.outliers(k)) / k

    def bytes_a_weight(self, k: int) -> float:
        """Of W, and as many of x, with the scales of groups of a row."""
        return (k + 2 * (k / self.group if self.group else 1) + 2 * self.outliers(k)) / k

    def quantized(self, groups: np.ndarray) -> np.ndarray:
        """[..., group] as the matrix instructions read it, times its scale, a bf16."""
        largest = {"int8": 127.0, "e4m3": E4M3_LARGEST}[self.number]
        scale = bf16(np.abs(groups).max(axis=-1, keepdims=True) / np.float32(largest))
        scaled = np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0)
        return (np.rint(scaled) if self.number == "int8" else e4m3(scaled)) * scale


def _cuda_outliers(k: int) -> int:
    """As csrc/cuda/linear/int8_groups.cuh has it: two blocks of 64 for each 768 of K."""
    return min(k, -(-k // 768) * 128)


FORMATS = (
    Format("int8, one scale a row", "int8"),
    Format("int8, groups of 128", "int8", 128),
    Format("int8, groups of 128, rotated, 128 outlier channels in 768 (CUDA's)",
           "int8", 128, True, False, _cuda_outliers),
    Format("the same after random signs", "int8", 128, True, True, _cuda_outliers),
    Format("int8, groups of 128, rotated after random signs", "int8", 128, True, True),
    Format("int8, groups of 256, rotated after random signs (the CPU's for a base model)", "int8", 256, True, True),
    Format("the same with CUDA's outlier channels", "int8", 256, True, True, _cuda_outliers),
    Format("int8, groups of 64, rotated after random signs, K / 96 outlier channels (the CPU's for other sizes)",
           "int8", 64, True, True, lambda k: max(8, k // 96)),
    Format("FP8, one scale a row", "e4m3"),
    Format("FP8, groups of 128", "e4m3", 128),
    Format("FP8, groups of 128, rotated after random signs", "e4m3", 128, True, True),
    Format("FP8, groups of 256, rotated after random signs", "e4m3", 256, True, True),
    Format("FP8, groups of 128, 128 outlier channels in 768", "e4m3", 128, False, False, _cuda_outliers),
    Format("FP8, groups of 128, rotated after random signs, 128 outlier channels in 768",
           "e4m3", 128, True, True, _cuda_outliers),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- numbers

E4M3_LARGEST = 448.0


def bf16(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to bf16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def e4m3(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to FP8 E4M3: three bits of mantissa, the smallest step 2^-9, saturating at 448; ties to even."""
    exponent = np.maximum(np.frexp(x)[1] - 1, -6)
    step = np.ldexp(np.float32(1), exponent - 3)
    return np.clip(np.rint(x / step) * step, -E4M3_LARGEST, E4M3_LARGEST)


def hadamard(groups: np.ndarray) -> np.ndarray:
    """The last axis, a power of two, times the Hadamard matrix of 1 and -1."""
    size, distance, x = groups.shape[-1], 1, groups
    while distance < size:
        pairs = x.reshape(*groups.shape[:-1], -1, 2, distance)
        x = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], axis=-2)
        distance *= 2
    return x.reshape(groups.shape)


@cache
def random_signs(k: int) -> np.ndarray:
    """1 or -1 for each channel of K, as csrc/cpu/linear/int8_format.h hashes its number."""
    bits = np.arange(k, dtype=np.uint32) * np.uint32(2654435761)
    bits ^= bits >> np.uint32(16)
    bits *= np.uint32(2246822519)
    bits ^= bits >> np.uint32(13)
    return np.where(bits & 1, 1, -1).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- linears


class QuantizedLinears:
    """The encoder's linears in a format: x Wᵀ + b, fp32 [T, K] → [T, N]."""

    def __init__(self, fmt: Format, config: ModelConfig, tensors: Tensors) -> None:
        self._format = fmt
        self._channels = quantize.channels(config, tensors, fmt.outliers)
        names = [name.removesuffix(".channel_shift") for name in self._channels if name.endswith(".channel_shift")]
        self._outliers = {name: self._channels[f"{name}.outlier_channels"].astype(int) for name in names}
        self._weights = {name: self._split(tensors[f"{name}.weight"], name) for name in names}
        self._factor = np.float32(1 / fmt.group if fmt.rotated else 1)  # H Hᵀ = group · I

    def __call__(self, x: np.ndarray, name: str) -> np.ndarray:
        quantized, outliers = self._split(x - self._channels[f"{name}.channel_shift"], name)
        weight, outlier_weight = self._weights[name]
        return quantized @ weight.T * self._factor + outliers @ outlier_weight.T + self._channels[f"{name}.bias"]

    def _split(self, x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The quantised groups [rows, K rounded up] and the outlier channels [rows, outliers] in bf16."""
        rows, k = x.shape
        outliers = bf16(x[:, self._outliers[name]])
        rest = x * random_signs(k) if self._format.signs else x.copy()
        rest[:, self._outliers[name]] = 0
        group = self._format.group or k
        groups = np.pad(rest, ((0, 0), (0, -k % group))).reshape(rows, -1, group)
        if self._format.rotated:
            groups = hadamard(groups)
        return self._format.quantized(groups).reshape(rows, -1), outliers


def last_hidden_state(batch: PackedBatch, config: ModelConfig, tensors: Tensors, dense: Dense) -> np.ndarray:
    """The encoder with ``dense`` for its linears, everything else as csrc/cuda has it in int8; [T, D]."""

    def norm(x: np.ndarray, residual: np.ndarray, name: str) -> np.ndarray:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return operations.add_layer_norm(x, residual, weight, bias, config.layer_norm_eps)

    x = operations.embed(batch, tensors, config.layer_norm_eps)
    for at in (f"layer.{i}." for i in range(config.num_layers)):
        qkv = bf16(dense(bf16(x), at + "qkv"))
        context = bf16(_attention(qkv, batch.cu_seqlens, config.num_heads))
        x = norm(dense(context, at + "attention_out"), x, at + "attention_norm")
        activated = bf16(operations.ACTIVATIONS[config.activation](dense(bf16(x), at + "ffn_in")))
        x = norm(dense(activated, at + "ffn_out"), x, at + "output_norm")
    return x


def _attention(qkv: np.ndarray, cu_seqlens: np.ndarray, num_heads: int) -> np.ndarray:
    """softmax(q kᵀ / √d) v with the numerators rounded to bf16 before the product with v."""
    tokens, width = qkv.shape
    size = width // (3 * num_heads)
    context = np.empty((tokens, num_heads, size), np.float32)
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        q, k, v = qkv[start:end].reshape(end - start, 3, num_heads, size).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(size))
        numerators = np.exp(scores - scores.max(axis=-1, keepdims=True))
        sums = numerators.sum(axis=-1, keepdims=True)
        context[start:end] = (bf16(numerators) @ v / sums).transpose(1, 0, 2)
    return context.reshape(tokens, -1)


# ---------------------------------------------------------------------------------------------------------- measures


@dataclass(frozen=True)
class Error:
    """Of the last hidden state: relative in the Frobenius norm, and cosines with the float64 reference by token."""

    relative: float
    worst: float
    below: float  # the share of tokens under PROMISED_COSINE

    @classmethod
    def of(cls, found: np.ndarray, truth: np.ndarray) -> Error:
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
        cosines = (found * truth).sum(axis=1) / norms
        relative = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        return cls(float(relative), float(cosines.min()), float((cosines < PROMISED_COSINE).mean()))


def errors(directory: Path, times: int) -> Iterator[tuple[Format | None, Error]]:
    """Of each format, and of bf16 alone as None."""
    config = ModelConfig.from_file(directory / "config.json")
    weights, _ = load_weights(directory, config, "feature-extraction")
    tensors = {name: np.array(tensor, np.float32) for name, tensor in weights.tensors.items()}
    batch = _texts(directory, times)
    truth = reference.encoder(batch, {name: tensor.astype(np.float64) for name, tensor in tensors.items()}, config, {})

    def in_bf16(x: np.ndarray, name: str) -> np.ndarray:
        return x @ bf16(tensors[f"{name}.weight"]).T + tensors[f"{name}.bias"]

    yield None, Error.of(last_hidden_state(batch, config, tensors, in_bf16), truth)
    for fmt in FORMATS:
        dense = QuantizedLinears(fmt, config, tensors)
        yield fmt, Error.of(last_hidden_state(batch, config, tensors, dense), truth)


def _texts(directory: Path, times: int) -> PackedBatch:
    texts = workloads.real_texts("clinc150")[:: 300 // times] + workloads.real_texts("xquad")[:: 30 // times]
    encoded = Tokenizer.from_directory(directory).encode_batch(texts, truncation=True, max_length=LONGEST)
    return PackedBatch.from_sequences([each.ids for each in encoded])


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a folder with a checkpoint")
    parser.add_argument("--times", type=int, default=1, help="so many times as many texts, at most 30 (1)")
    arguments = parser.parse_args()
    for directory in arguments.models:
        figures = "relative error", "worst token's cosine", f"tokens under {PROMISED_COSINE}"
        lines = [["format", *figures, "tensor time", "bytes a weight"]]
        for fmt, error in errors(directory, arguments.times):
            cost = (fmt.tensor_time(768), fmt.bytes_a_weight(768)) if fmt else (1.0, 2.0)
            found = f"{error.relative:.4f}", f"{error.worst:.5f}", f"{error.below:.2%}"
            lines.append([fmt.name if fmt else "bf16", *found, *(f"{figure:.2f}" for figure in cost)])
        print(f"\n{directory}\n\n{tables.markdown(lines)}\n")


if __name__ == "__main__":
    main()
