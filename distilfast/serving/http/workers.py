"""Several processes that accept at one socket, forked when the models are loaded, so that they share the weights.

The first process loads and forks; it serves nothing itself. A worker that dies is started again, after a delay that
grows while it keeps dying. A reload loads the models anew, forks new workers, and lets the old ones answer what they
have accepted. Connections wait in the socket's queue while no worker accepts, at the start too.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

from distilfast.errors import ConfigError, DistilfastError
from distilfast.serving.http import systemd
from distilfast.serving.http.app import create_app
from distilfast.serving.http.board import Board
from distilfast.serving.http.settings import Settings
from distilfast.serving.http.uvicorn_server import Server, uvicorn_config

LOG = logging.getLogger("distilfast.serve")

FIRST_DELAY, LAST_DELAY = 0.1, 10.0
"""Seconds before a worker that died is started again; doubled each time, and at first again after it lived so long."""

NOT_STARTED = 3
"""Exit status of a worker that cannot serve at all: starting it again would change nothing."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_LOADED = 0  # beside the signals' numbers


@dataclass
class _Slot:
    """A worker's place: its process while it runs, since when, and else when it begins."""

    process: int | None = None
    since: float = 0.0
    due: float = 0.0
    delay: float = FIRST_DELAY


class _Events:
    """Signals, and the end of a load, as bytes of a pipe, so that one wait is for all of them."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def begin(self) -> None:
        for each in _SIGNALS:
            signal.signal(each, lambda *_: None)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def add(self, number: int) -> None:
        os.write(self._writer, bytes([number]))

    def wait(self, seconds: float | None) -> bytes:
        """Those that have come, as soon as there is one; none after ``seconds``."""
        ready, _, _ = select.select([self._reader], [], [], seconds)
        return os.read(self._reader, 4096) if ready else b""


class Workers:
    """The first process."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        """Nothing is loaded and no worker runs."""
        self._settings, self._listener = settings, listener
        self._events = _Events()
        self._board = Board(settings.workers)
        self._slots = [_Slot() for _ in range(settings.workers)]
        self._retiring: set[int] = set()  # processes of an older generation, which answer what they have accepted
        self._lifeline = os.pipe()  # which the end of this process closes
        self._app: Any = None
        self._loading: _Loading | None = None
        self._ends = self._load_again = False
        self._error: DistilfastError | None = None

    def run(self) -> None:
        """Until a signal ends it and all workers have ended; raises the error that kept it from serving."""
        self._events.begin()
        self._begin_loading()
        while not self._ends or self._processes():
            for number in self._events.wait(self._patience()):
                self._on(number)
            self._reap()
            self._begin_due()
        if self._error is not None:
            raise self._error

    def _processes(self) -> list[int]:
        return [*(slot.process for slot in self._slots if slot.process is not None), *self._retiring]

    def _patience(self) -> float | None:
        due = [slot.due for slot in self._slots if slot.process is None and self._app is not None and not self._ends]
        return max(0.0, min(due) - time.monotonic()) if due else None

    # ------------------------------------------------------------------------------------------------ what has happened

    def _on(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._end(None)
        elif number == signal.SIGHUP and not self._ends:
            systemd.notify_reloading()
            self._begin_loading()
        elif number == _LOADED:
            self._finish_loading()

    def _end(self, error: DistilfastError | None) -> None:
        """First the workers answer what they have accepted; the second time they are ended at once."""
        sent = signal.SIGKILL if self._ends else signal.SIGTERM
        if not self._ends:
            self._ends, self._error = True, error
            systemd.notify("STOPPING=1")
            self._listener.close()  # so that nobody waits in a queue from which no worker takes any more
        for process in self._processes():
            os.kill(process, sent)

    def _begin_loading(self) -> None:
        if self._loading is not None:
            self._load_again = True
            return
        self._loading = _Loading(self._settings, self._events)
        self._loading.start()

    def _finish_loading(self) -> None:
        assert self._loading is not None
        self._loading.join()
        done, self._loading = self._loading, None
        if self._ends:
            return
        if done.error is None:
            self._begin_generation(done)
        elif self._app is None:
            self._end(done.error)
        else:
            LOG.error(f"The models stay as they are: {done.error}")
        if done.error is None or self._app is not None:
            systemd.notify("READY=1")
        if self._load_again:
            self._load_again = False
            self._begin_loading()

    def _begin_generation(self, loaded: _Loading) -> None:
        """Workers with the models that have been loaded, in the place of the others."""
        is_first, self._app = self._app is None, loaded.app
        for number, slot in enumerate(self._slots):
            if slot.process is not None:
                self._retiring.add(slot.process)
            self._begin(number)
        for process in self._retiring:
            os.kill(process, signal.SIGTERM)
        names = ", ".join(str(slot.process) for slot in self._slots)
        what = f"Ready after {loaded.seconds:.1f} s" if is_first else "The models have been loaded again"
        LOG.info(f"{what}, {len(self._slots)} workers: {names}")

    def _reap(self) -> None:
        """Note who has ended."""
        for process in self._processes():
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended:
                continue
            self._retiring.discard(process)
            for number, slot in enumerate(self._slots):
                if slot.process == process:
                    slot.process = None
                    self._on_death(number, slot, process, os.waitstatus_to_exitcode(status))

    def _on_death(self, number: int, slot: _Slot, process: int, status: int) -> None:
        if self._ends:
            return
        if status == NOT_STARTED:
            self._end(ConfigError("A worker has not started; the log says why."))
            return
        now = time.monotonic()
        if now - slot.since > LAST_DELAY:
            slot.delay = FIRST_DELAY
        slot.due = now + slot.delay
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        LOG.error(f"Worker {number} (process {process}) has ended {how}; another begins in {slot.delay:.1f} s.")
        slot.delay = min(2 * slot.delay, LAST_DELAY)

    def _begin_due(self) -> None:
        if self._app is None or self._ends:
            return
        for number, slot in enumerate(self._slots):
            if slot.process is None and slot.due <= time.monotonic():
                self._begin(number)
                LOG.info(f"Worker {number} is process {slot.process}.")

    # --------------------------------------------------------------------------------------------------------- a worker

    def _begin(self, number: int) -> None:
        """Fork worker ``number``."""
        # Until the child has handlers of its own: in this process's, its signals would count as this process's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        process = os.fork()
        if process == 0:
            status = 1
            try:
                status = self._serve(number)
            except BaseException as error:
                LOG.error(f"Worker {number} has failed.", exc_info=error)
            finally:
                logging.shutdown()
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        slot = self._slots[number]
        slot.process, slot.since = process, time.monotonic()

    def _serve(self, number: int) -> int:
        """In the child: until it is told to end, or its parent has died; its exit status."""
        signal.set_wakeup_fd(-1)
        os.close(self._lifeline[1])
        self._app.state.metrics.share(self._board, number)
        server = _WorkerServer(uvicorn_config(self._app, self._settings))
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, server.handle_exit)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's, from which the next generation comes
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        threading.Thread(target=self._end_with_parent, args=(server,), daemon=True).start()
        try:
            server.run(sockets=[self._listener])
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    def _end_with_parent(self, server: Server) -> None:
        os.read(self._lifeline[0], 1)  # nothing is ever written to it: it returns when the parent's end is closed
        server.should_exit = True


class _WorkerServer(Server):
    """Ends at once only by SIGKILL: a terminal and some service managers send signals to parent and workers alike."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As a signal handler."""
        self.should_exit = True


class _Loading(threading.Thread):
    """Loads the models of a generation; the events are told when it has ended."""

    def __init__(self, settings: Settings, events: _Events) -> None:
        super().__init__(daemon=True)
        self._settings, self._events = settings, events
        self.app: Any = None
        self.error: DistilfastError | None = None
        self.seconds = 0.0

    def run(self) -> None:
        begin = time.monotonic()
        self.app = create_app(self._settings)
        self.error = self.app.state.service.load_or_say_why()
        self.seconds = time.monotonic() - begin
        self._events.add(_LOADED)
