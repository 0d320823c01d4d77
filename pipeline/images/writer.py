"""FFCV's writer, made to fail when it fails.

FFCV 1.0.2 waits for a counter that its worker processes raise: when one of them dies, on a
full disk for example, it waits for ever. With one worker its job runs in this process, so that
errors arrive and the file's bytes are always the same; with several, they are watched.
"""

from __future__ import annotations

import errno
import os
import queue
import traceback
from collections.abc import Callable
from ctypes import c_uint64
from multiprocessing import Process, Queue, Value
from pathlib import Path
from typing import Any

from ffcv.memory_allocator import MemoryAllocator
from ffcv.utils import align_to_page
from ffcv.writer import DatasetWriter, worker_job_indexed_dataset

from ltd_pipe.errors import WriteError


class BetonWriter(DatasetWriter):  # type: ignore[misc]
    """Writes an indexable data set; see `ffcv.writer.DatasetWriter`.

    With one worker this process does the work, and the data set itself counts its progress.
    """

    def __init__(
        self,
        fname: str,
        fields: dict[str, Any],
        *,
        num_workers: int,
        page_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(fname, fields, page_size=page_size, num_workers=num_workers)
        self._progress = progress

    def _write_common(
        self, num_samples: int, queue_content: Any, work_fn: Any, extra_worker_args: Any
    ) -> None:
        del work_fn  # from_indexed_dataset has only one
        self.num_samples = num_samples
        self.prepare()
        try:
            run = self._alone if self.num_workers == 1 else self._together
            allocations = run(list(queue_content), extra_worker_args)
            self._require_pages(allocations)
            self.finalize(allocations)
        except BaseException as error:
            # The frames of the failed job still hold views of the shared memory, which could
            # then not be closed.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            self.metadata_sm.close()
            self.metadata_sm.unlink()

    def _require_pages(self, allocations: list[Any]) -> None:
        # FFCV writes without a buffer and does not look at how much was written: on a disk
        # that fills up the last page can be cut short in silence.
        begin = align_to_page(self.data_region_start, self.page_size)
        last = max(place for _, place, _ in allocations)
        expected = begin + ((last - begin) // self.page_size + 1) * self.page_size
        found = Path(self.fname).stat().st_size
        if found != expected:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _job(self, work: Any, done: Any, allocations: Any, extra: Any) -> tuple[Any, ...]:
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        fields = (work, self.metadata_sm, self.metadata_type, self.fields, allocator)
        return (*fields, done, allocations, *extra)

    def _alone(self, chunks: list[Any], extra: Any) -> list[Any]:
        work: queue.Queue[Any] = queue.Queue()
        for chunk in [*chunks, None]:
            work.put(chunk)
        allocations: queue.Queue[Any] = queue.Queue()
        worker_job_indexed_dataset(*self._job(work, Value(c_uint64, 0), allocations, extra))
        return list(allocations.get())

    def _together(self, chunks: list[Any], extra: Any) -> list[Any]:
        work: Any = Queue()
        for chunk in [*chunks, *[None] * self.num_workers]:
            work.put(chunk)
        allocations: Any = Queue()
        done = Value(c_uint64, 0)
        job = self._job(work, done, allocations, extra)
        workers = [
            Process(target=worker_job_indexed_dataset, args=job, daemon=True)
            for _ in range(self.num_workers)
        ]
        for worker in workers:
            worker.start()
        try:
            return self._collect(workers, allocations, done)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                # Otherwise a process that has ended stays in the system's table.
                worker.join()

    def _collect(self, workers: list[Process], allocations: Any, done: Any) -> list[Any]:
        parts: list[Any] = []
        told = 0
        while len(parts) < len(workers):
            try:
                parts.append(allocations.get(timeout=0.2))
            except queue.Empty:
                dead = [worker.exitcode for worker in workers if worker.exitcode not in {None, 0}]
                if dead:
                    raise WriteError(
                        self.fname,
                        f"a writing process died (exit code {dead[0]})",
                        remedy="Its message is above; run it again with workers: 1.",
                    ) from None
            now = int(done.value)
            if self._progress and now > told:
                self._progress(now - told)
            told = now
        return [entry for part in parts for entry in part]
