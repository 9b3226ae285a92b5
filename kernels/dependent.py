"""Programmatic dependent launch: a kernel starts while the one before it in the stream still runs (Hopper and later).

Without it every kernel waits until the last program of the one before has ended and its results are in memory; with
forty kernels of two microseconds each, as for few tokens, that is a large part of the time. A kernel here is launched
as soon as all programs of the one before have called ``wait_for_predecessor``, and waits in the same call. What it may
do before is what does not depend on any kernel: fetch weights, which are written once, when the model is loaded.

Why no order is lost. ``gdc_wait`` returns when the predecessor has ended as a whole and its writes are visible, not
when it has let its successor start. Every program of every kernel waits before it reads or writes anything but weights,
and before it returns. So a kernel cannot end before its predecessor has, which by induction holds for all kernels
before it: after the wait the order is that of an ordinary stream. That covers reading what was written (of a residual
by a kernel two launches later too) and overwriting what was read. ``receive``, the first kernel of a forward, is an
ordinary launch: it begins when all that is before it in the stream has ended, another forward for instance.

Why nothing gets stuck. A kernel that waits may occupy multiprocessors, but it is launched only when every program of
the one before runs already.

Stream capture turns such a launch into a programmatic edge of the graph (CUDA 12.3 and later).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_predecessor(is_dependent: tl.constexpr):
    """Wait for the kernel before, and let the next one start; nothing where the launch is an ordinary one."""
    if is_dependent:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch(ptrs):
    """Ask for the 128 bytes of memory around each of ``ptrs`` to be brought to L2."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [ptrs], dtype=tl.int32, is_pure=False, pack=1
    )
