"""What `make nightly` runs and `make check` leaves out: repetitions of a property at other sizes, types and widths.

A rule names tests by a regular expression over their ids and says what `make check` still runs of the same property.
Every kernel identity keeps every property of tests/kernels and tests/cuda in `make check`; what waits for the night is
whole models on instruction sets other than the machine's own, more of the same kind, and minutes of compilers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from identities import NATIVE, SIMULATED, THERE


@dataclass(frozen=True)
class Rule:
    """``tests``: a regular expression of ids below tests/; ``stays``: what `make check` runs of the same property."""

    tests: str
    stays: str


_OTHER = "|".join(name for name in (*THERE, SIMULATED) if name != NATIVE)
"""The ISAs that this processor does not choose."""
RULES = (
    # Whole models on every instruction set.
    Rule(
        rf"model/test_(concurrency|low_precision|parity)\.py::\w+\[(\w+-)*({_OTHER})[-\]]",
        "the machine's own ISA; small models on each ISA in parity/test_clean_models.py and model/test_outputs.py",
    ),
    Rule(
        rf"model/test_invariance\.py::.*\[wide-([\w-]+-)?({_OTHER})[-\]]",
        "narrow on each ISA, wide on the machine's own",
    ),
    Rule(r"model/test_invariance\.py::test_rows_that.*\[wide-.*text-classification", "fill-mask; narrow with both"),
    Rule(
        rf"model/test_invariance\.py::test_(rows_that|any_rows).*\[narrow-([\w-]+-)?({_OTHER})[-\]]",
        "the machine's own ISA; batches and threads on each ISA",
    ),
    Rule(r"pinned/test_pinned\.py::test_cpu\[ref\]", "every other ISA"),
    # Whole models in full size.
    Rule(
        r"model/test_parity\.py::test_every_head\[.*-(feature-extraction|text-\w+|token-\w+|multiple-choice)\]",
        "fill-mask and question-answering; every head of small models in parity/test_clean_models.py",
    ),
    Rule(r"model/test_low_precision\.py::test_full_size.*-bf16(x3)?\]", "int8; bf16 with trained weights"),
    Rule(
        r"model/test_low_precision\.py::test_trained_weights.*\[bf16x3\]",
        "bf16 and int8; bf16x3 in small models, and in the linears of its own that AMX has",
    ),
    Rule(r"model/test_model_card\.py::test_the_teacher.*\[(text|token|feature|question)-", "fill-mask"),
    Rule(r"parity/test_clean_models\.py::test_every_seed", "every task with one seed"),
    # The CUDA sources on the simulated device.
    Rule(r"cuda/test_cuda_compiled\.py::(?!test_the_front_end|test_the_build)", "nvcc's front end over every source"),
    Rule(
        r"cuda/test_cuda_encoder\.py::test_the_persistent_kernel.*host.*(-bf16|lengths[13]-\w+)\]",
        "fp16 and int8, most lengths",
    ),
    Rule(
        r"cuda/test_cuda_encoder\.py::test_every_inter.*host-(fe|fi|to|q|m)[\w-]+-(fp16|bf16)\]",
        "each task in fp32 and int8, text classification in every precision",
    ),
    Rule(r"cuda/test_cuda_encoder\.py::test_the_width_of_distilbert\[host-(fp32|fp16|bf16)\]", "int8"),
    Rule(
        r"cuda/test_cuda_encoder\.py::test_clusters_keep.*host-(config0-fp16|config1-(fp32|bf16))\]",
        "each precision in one of the two widths",
    ),
    Rule(
        r"cuda/test_cuda_encoder\.py::test_the_first_forward.*host-(fp32-\w+|bf16-False|int8-False)\]",
        "a process with a graph and one with the persistent kernel",
    ),
    Rule(r"cuda/test_cuda_encoder\.py::test_clusters_run.*host-(fp32|int8)\]", "fp16 and bf16"),
    Rule(r"cuda/test_cuda_linear_add_layer_norm\.py::test_widths_of.*host-bf16-1536\]", "smaller widths of that tile"),
    Rule(r"cuda/test_cuda_linear_add_layer_norm\.py::test_the_size_of_distilbert\[host\]", "its width, with few rows"),
    Rule(r"cuda/test_cuda_int8\.py::test_trained_weights_keep_their_budget\[host\]", "seeded weights with outliers"),
    Rule(r"cuda/test_cuda_int8\.py::test_rows_that_no_one_needs.*host-70\]", "three sequences"),
    Rule(r"cuda/test_cuda_ids\.py::test_more_sequences.*host", "batches of fewer sequences than a block has threads"),
    Rule(r"cuda/test_cuda_ids\.py::test_ids_on.*host-(dlpack-int32|interface-int64)\]", "each way in, and each type"),
    Rule(
        r"pinned/test_pinned\.py::test_simulated_cuda\[(fp32-\w+|int8-clusters)\]",
        "int8, whose encoder runs bf16's kernels too, by graphs and by the persistent kernel",
    ),
    Rule(r"ptx/test_ptx_cuda\.py::test_each_barrier_and_wait_of_attention.*", "those of linear and add_layer_norm"),
    # Triton under its interpreter, and its compiler.
    Rule(
        r"model/test_triton_backend\.py::test_(every_inter.*\[(fp32-distilbert|fp16-bert)|runs_again.*\[fp32)\]",
        "each precision with one of the two models",
    ),
    Rule(
        r"model/test_triton_backend\.py::test_skipped_rows.*\[(fp32-token|fp16-text)-",
        "each precision with one of the two heads",
    ),
    Rule(
        r"kernels/test_triton_operations\.py::test_attention_ragged.*\[(fp32-32-|fp16-64-|fp32-64-2 of 512)",
        "fp32-64 and fp16-32, 512 tokens in fp16",
    ),
    Rule(r"kernels/test_triton_ahead\.py::.*\[(sm_80|gfx942)\]", "sm_90"),
    Rule(r"pinned/test_pinned\.py::test_triton_interpreter", "the budgets of every Triton kernel and model"),
    # Texts, libraries and processes.
    Rule(r"fuzz/test_fuzz\.py::", "the inputs that fuzzing has found, as tests where the fault was"),
    Rule(
        r"model/test_token_classification\.py::test_(chosen_labels.*\[(first|max)|long_text.*-(first|max))\]",
        "none, simple and average; every strategy on known logits and on one of the two data sets",
    ),
    Rule(r"model/test_token_classification\.py::test_real_text\[wikigold.*-(none|simple|first|average)\]", "max"),
    Rule(r"model/test_zero_shot\.py::test_answers.*\[pipes1-", "the other model"),
    Rule(r"python/test_arithmetic\.py::test_bits.*\[(Haswell|SkylakeX|Zen|one thread)\]", "the oldest BLAS kernel"),
    Rule(r"python/test_memory\.py::test_thousands.*\[feature", "the other task"),
    Rule(r"python/test_tokenizer\.py::test_ids_of_every_text\[uncased\]", "the cased vocabulary"),
    Rule(r"benchmarks/test_gpu_check\.py::test_the_rehearsal_of_the_checks", "each step's own test"),
    Rule(r"parity/test_command\.py::test_a_plot\[svg", "png"),
    Rule(r"benchmarks/test_kit\.py::test_a_plot_is_made_of_rows\[cuda\]", "cpu"),
    Rule(
        r"integrations/test_ray\.py::test_(replicas|the_batcher|a_killed|what_a_worker)",
        "the app and the job without a cluster",
    ),
)


def is_nightly(test: str) -> bool:
    """Whether only `make nightly` runs the test of this id, such as tests/pinned/test_pinned.py::test_cpu[ref]."""
    return any(re.match(rule.tests, test.removeprefix("tests/")) for rule in RULES)


def without_a_test(tests: Iterable[str]) -> Sequence[Rule]:
    """The rules that name no test any more; a module that is skipped as a whole, as Ray's are without Ray, has none."""
    every = [test.removeprefix("tests/") for test in tests]
    modules = {test.partition("::")[0] for test in every}
    collected = [rule for rule in RULES if any(re.fullmatch(rule.tests.partition("::")[0], each) for each in modules)]
    return [rule for rule in collected if not any(re.match(rule.tests, test) for test in every)]
