"""The simulated device finds planted bugs: each kernel of tests/cuda_host/faults.cpp has one, but for two without."""

from __future__ import annotations

import pytest

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


MISUSES = {
    "first_use": "The kernel write_number is first used while a graph is recorded",
    "allocation": "Memory is allocated while a graph is recorded",
    "pinned_allocation": "Memory is allocated while a graph is recorded",
    "wait": "A stream is waited for while a graph is recorded",
    "pageable_copy": "Memory that is not pinned is copied while a graph is recorded",
    "shared_memory": "no_fault asks for more shared memory than a block can have",
    "cluster_blocks": "no_fault asks for more blocks than a cluster can have",
    "cluster_grid": "The launch of no_fault has an impossible grid",
}


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


@pytest.mark.parametrize("what", MISUSES)
def test_a_misuse_of_the_runtime_is_found(faults, what):
    with pytest.raises(RuntimeError, match=rf"^{MISUSES[what]}\.$"):
        faults.misuse(what)
    faults.misuse("nothing")
