"""What the Triton backend uses of torch.cuda, simulated on the CPU: streams in order, and the rules of graph capture.

Kernels run in Triton's interpreter as they are launched, so a stream has nothing left to do; it keeps whom it waited
for. A capture (of a thread, "thread_local") collects launches instead of running them. What is
forbidden meanwhile is an error: by CUDA a wait for the device in any thread, and in the capturing one a wait of the
host or new memory; by a rule of this project a second capture in the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from distilfast.kernels import launch


class Stream:
    def __init__(self, cuda: SimulatedCuda, name: str) -> None:
        self.cuda, self.name = cuda, name
        self.waited_for: list[str] = []

    def wait_event(self, event: Event) -> None:
        if event.recorded_on != self.name:
            self.waited_for.append(event.recorded_on)

    def synchronize(self) -> None:
        self.cuda.forbid_in_a_capture("a wait for a stream")


class Event:
    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda = cuda
        self.recorded_on = ""

    def record(self) -> None:
        self.recorded_on = self.cuda.current.name
        self.cuda.ran_on.append(self.recorded_on)

    def synchronize(self) -> None:
        self.cuda.forbid_in_a_capture("a wait for an event")


class Graph:
    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda = cuda
        self.work: list[launch.Launch] = []

    def capture_begin(self, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local"
        assert self.cuda.current.name != "default", "the default stream cannot be captured"
        self.cuda.forbid_during_a_capture("a second capture")
        self.cuda.capturing, self.cuda.capturing_thread = self, threading.get_ident()
        self._recording = launch.recording()
        self.work = self._recording.__enter__()

    def capture_end(self) -> None:
        self._recording.__exit__(None, None, None)
        self.cuda.capturing = None
        self.cuda.captures += 1

    def replay(self) -> None:
        for each in self.work:
            launch.launch(each.kernel, each.grid, *each.arguments, **each.options)
        self.cuda.replays += 1


class SimulatedCuda:
    """One device of one process."""

    def __init__(self) -> None:
        self.default = Stream(self, "default")
        self.capturing: Graph | None = None
        self.capturing_thread = 0
        self.captures = self.replays = 0
        self.ran_on: list[str] = []  # the stream of each forward
        self.allocated_on: list[str] = []
        self._thread = threading.local()
        self._streams = 0

    @property
    def current(self) -> Stream:
        return getattr(self._thread, "stream", self.default)

    def forbid_in_a_capture(self, what: str) -> None:
        if self.capturing_thread == threading.get_ident():
            self.forbid_during_a_capture(what)

    def forbid_during_a_capture(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"CUDA error 900: {what} while a stream is being captured")

    def new_stream(self, *_: Any) -> Stream:
        self._streams += 1
        return Stream(self, f"own {self._streams}")

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self._thread.stream = self.current, stream
        yield
        self._thread.stream = before

    def allocating(self, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*arguments: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            self.forbid_in_a_capture("an allocation")
            made = make(*arguments, **options)
            if (
                made.numel() and options.get("dtype") is torch.uint8 and str(options.get("device")) == "cpu"
            ):  # an engine's scratch
                self.allocated_on.append(self.current.name)
            return made

        return run


@pytest.fixture
def simulated_cuda(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    """torch.cuda from here on; a backend made before can be moved to it by giving it a stream."""
    cuda = SimulatedCuda()
    for name, value in {
        "Stream": cuda.new_stream,
        "Event": lambda **_: Event(cuda),
        "CUDAGraph": lambda: Graph(cuda),
        "ExternalStream": lambda handle, *_: Stream(cuda, f"handle {handle}"),
        "current_stream": lambda *_: cuda.current,
        "default_stream": lambda *_: cuda.default,
        "stream": cuda.on,
        "synchronize": lambda *_: cuda.forbid_during_a_capture("a wait for the device"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("empty", "zeros", "empty_like"):
        monkeypatch.setattr(torch, name, cuda.allocating(getattr(torch, name)))
    return cuda
