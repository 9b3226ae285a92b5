"""The simulated device finds planted bugs.

Each kernel of tests/cuda_host/faults.cpp has one, but for two without; misuses.cpp breaks the rules of the runtime.
"""

from __future__ import annotations

import pytest
from simulated import SimulatedDevice

NO_FAULTS = ("no_fault", "no_fault_in_cluster")
REPORTS = {
    "missing_barrier": "without a barrier between them",
    "missing_warp_barrier": "without a barrier between them",
    "missing_second_barrier": "without a barrier between them",
    "blocks_race": "without a barrier between them",
    "global_out_of_bounds": "writes outside every allocation and its shared memory",
    "shared_out_of_bounds": "writes outside every allocation and its shared memory",
    "misaligned": "makes a misaligned access",
    "unwritten_shared": "reads memory that was never written",
    "early_read": "asynchronous copy that was not waited for",
    "early_read_of_second_group": "asynchronous copy that was not waited for",
    "copy_without_barrier": "without a barrier between them",
    "divergent_shuffle": "waits forever at shuffle_xor",
    "two_shuffles": "divergent collective",
    "bank_conflict": "a bank conflict",
    "divergent_barrier": "waits forever at sync_threads",
    "missing_cluster_barrier": "without a barrier between them",
    "write_after_arrival": "without a barrier between them",
    "missing_second_cluster_barrier": "without a barrier between them",
    "write_before_begin": "writes to a block of its cluster that may not have begun",
    "write_after_end": "writes to a block of its cluster that has ended",
    "end_before_write": "ends while a block of its cluster may still write to its shared memory",
    "block_out_of_bounds": "writes outside the shared memory of a block of its cluster",
    "no_such_block": "writes to a block that its cluster does not have",
    "absent_block": "waits forever at wait_cluster",
    "divergent_cluster_barrier": "divergent collective",
    "wait_without_arrival": "waits for a cluster barrier at which it has not arrived",
    "second_arrival": "arrives at a cluster barrier before it has waited for the last",
    "arrival_orders_no_lanes": "without a barrier between them",
    "clusters_race": "without a barrier between them",
}


RIGHT_USES = (
    "nothing",
    "48_kb",
    "largest_parameter",
    "most_cooperative_blocks",
    "programmatic_chain",
    "wait_in_one_thread",
    "early_release",
    "read_of_what_has_ended",
)
IN_CAPTURE = "while a stream of the device is captured"
MISUSES = {
    "not_loaded": "invalid device function",
    "shared_memory_not_requested": "takes 49153 bytes of dynamic shared memory where at most 49152 were requested",
    "shared_memory": "takes 232449 bytes of dynamic shared memory where at most 232448 were requested",
    "parameter": "take_parameter<32765> has more than 32764 bytes of parameters",
    "cluster_blocks": "plus_one asks for more blocks than a cluster can have",
    "cluster_grid": "plus_one has a grid that its clusters do not divide",
    "empty_grid": "plus_one has an impossible grid",
    "cooperative_blocks": "is launched cooperatively with more than the 132 blocks that fit the device",
    "stream_of_another_device": "a kernel is launched on a stream of another device",
    "memory_of_another_device": "In plus_one thread 0 .* accesses memory of device 1",
    "first_use": "first_used is first used while a graph is built",
    "allocation": "memory is allocated while a graph is built",
    "pinned_allocation": "pinned memory is allocated while a graph is built",
    "wait": "a wait while a graph is built",
    "pageable_copy": "a graph copies host memory that is not pinned",
    "allocation_in_capture": f"memory is allocated {IN_CAPTURE}",
    "pinned_allocation_in_capture": f"pinned memory is allocated {IN_CAPTURE}",
    "free_in_capture": f"memory is freed {IN_CAPTURE}",
    "device_wait_in_capture": f"a wait for the device {IN_CAPTURE}",
    "wait_for_captured": "a wait for a stream that is being captured",
    "work_on_captured": "work on a stream that is being captured",
    "default_stream_in_capture": "would make the legacy stream depend on a capturing blocking stream",
    "capture_of_the_others": "operation failed due to a previous error during capture",
    "destroyed_stream": r"there is no such stream \(any more\)",
    "destroyed_twice": r"there is no such stream \(any more\)",
    "destroyed_event": r"there is no such event \(any more\)",
    "freed_twice": r"memory is freed that is not allocated \(any more\)",
    "use_after_free": "In plus_one thread 0 .* reads outside every allocation",
    "pinned_memory_freed_early": "A copy runs after its pinned memory was freed",
    "programmatic_edge_of_a_copy": "a programmatic edge joins nodes that are not both kernels",
    "programmatic_edge_without_port": "an edge's type and ports do not belong together",
    "second_edge": "there is an edge between these nodes already",
    "circle": "the graph's nodes wait for each other",
    "read_before_wait": "In read_first .* reads .* which a kernel before it accesses, without waiting for it",
    "write_before_wait": "In write_first .* writes .* which a kernel before it accesses, without waiting for it",
    "no_wait": "In never_wait no thread waits for the kernel before it",
    "read_after_early_release": "In read_first .* reads .* which a kernel before it accesses, without waiting for it",
    "overlap_on_a_stream": "In read_first .* reads .* which a kernel before it accesses, without waiting for it",
}
ORDERED = {"two_streams": 11, "reused_pinned_memory": 0, "read_pinned_memory": 0, "mapped_memory": 1}
"""What each value of ``ordered_result`` is where streams and waits are right."""


@pytest.mark.parametrize("name", NO_FAULTS)
def test_a_kernel_without_a_fault_runs(faults, name):
    assert faults.run(name) == list(range(63, -1, -1))


def test_every_fault_has_its_report(faults):
    assert set(faults.names()) == {*REPORTS, *NO_FAULTS}


@pytest.mark.parametrize("name", REPORTS)
def test_a_fault_is_found(faults, name):
    with pytest.raises(RuntimeError, match=f"In {name} thread .* of block .*{REPORTS[name]}"):
        faults.run(name)


@pytest.mark.parametrize("name", REPORTS)
def test_the_device_works_after_a_fault(faults, name):
    with pytest.raises(RuntimeError):
        faults.run(name)
    for clean in NO_FAULTS:
        assert faults.run(clean) == list(range(63, -1, -1))


def test_every_misuse_has_its_report(faults):
    assert set(faults.misuses()) == {*MISUSES, *RIGHT_USES}


@pytest.mark.parametrize("what", RIGHT_USES)
def test_a_right_use_of_the_runtime_is_none(faults, what):
    faults.misuse(what)


@pytest.mark.parametrize("what", MISUSES)
def test_a_misuse_of_the_runtime_is_found(faults, what):
    with pytest.raises(RuntimeError, match=rf"failed: .*{MISUSES[what]}"):
        faults.misuse(what)
    faults.misuse("nothing")


@pytest.mark.parametrize("what", ORDERED)
def test_a_missing_order_is_found(faults, what):
    """For some seed; with streams and waits in place every seed gives the same."""
    device = SimulatedDevice(faults)
    seeds = range(8)
    right, wrong = set(), set()
    for seed in seeds:
        device.seed(seed)
        right.add(faults.ordered_result(what, True))
        wrong.add(faults.ordered_result(what, False))
    assert right == {ORDERED[what]}
    assert wrong - right


def test_leaks_are_counted(faults):
    device = SimulatedDevice(faults)
    before = device.live_objects()
    faults.leak()
    counts = [
        dict(reversed(each.split(" ", 1)) for each in text.split(", ") if each)
        for text in (before, device.live_objects())
    ]
    more = {what: int(number) - int(counts[0].get(what, 0)) for what, number in counts[1].items()}
    assert more == {"allocations": 1, "pinned allocations": 1, "streams": 1, "events": 2}
