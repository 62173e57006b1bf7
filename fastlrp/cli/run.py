"""Explaining many inputs: reading, computing, drawing and writing at the same time, results in the inputs' order.

    readers (threads)  ->  explainer (this thread)  ->  writers (threads)  ->  manifest and output (this thread)

Queues between them are bounded. Inputs are computed in fixed batches of their list: which ones are done already does
not change a batch, so an interrupted run that goes on gives the same numbers to the last bit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.cli import class_choice, tables
from fastlrp.cli.engine import Engine
from fastlrp.cli.errors import FAILED, Failure, InputFailure, one_line
from fastlrp.cli.inputs import Item
from fastlrp.cli.reading import Reader, Sample
from fastlrp.cli.sheet import Features, Sheet, Wanted, is_signal, record
from fastlrp.cli.stop import Stop
from fastlrp.cli.store import Record, Store
from fastlrp.errors import CaptureError, NotFiniteError

IN_FLIGHT = 512 << 20
"""Bytes of relevance that wait to be drawn and written; one block may be larger."""


class Budget:
    """Bytes that may wait at once."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._change = limit, 0, threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there is room; what is larger than all of it waits until it is alone."""
        with self._change:
            while self._used and self._used + size > self._limit:
                self._change.wait()
            self._used += size

    def give(self, size: int) -> None:
        with self._change:
            self._used -= size
            self._change.notify_all()


@dataclass(eq=False)
class Pending:
    """A sheet whose blocks are on their way: done when its files are written."""

    sheet: Sheet
    written: Future[list[str]]


class Run:
    """One run over a list of items.

    Args:
        engine: computes. reader: reads. wanted: which files. store: where to. names: of the classes.
        tell: called with each item's position and record, in order; failures too.
        workers: threads for reading, and as many for writing. stop: when to end early.
    """

    def __init__(
        self,
        engine: Engine,
        reader: Reader,
        wanted: Wanted,
        store: Store,
        names: Any,
        tell: Callable[[Record], None],
        workers: int,
        stop: Stop,
    ) -> None:
        self.engine, self.reader, self.wanted, self.store, self.names = engine, reader, wanted, store, names
        self.workers, self.stop = workers, stop
        self._tell = tell
        self._ready: dict[int, Record] = {}
        self._next = 0
        self._pending: deque[tuple[int, Pending]] = deque()
        self._budget = Budget(IN_FLIGHT)
        self._unfit: dict[torch.Size, str] = {}

    def explain(self, items: Sequence[Item]) -> None:
        """All items that are not done yet.

        Raises:
            Failure: when the run cannot go on: a full disk, targets or layers that the model does not have.
            KeyboardInterrupt: at the second Ctrl-C. What was computed before is written and recorded in any case.
        """
        items = self.store.adopt(items)
        chunks = list(self._chunks(items))
        to_read = [items[i] for chunk, todo in chunks for i in chunk]
        with ThreadPoolExecutor(self.workers) as readers, ThreadPoolExecutor(self.workers) as writers:
            found = self.reader.ahead(to_read, readers, 2 * self.engine.batch + self.workers)
            try:
                for chunk, todo in chunks:
                    if self.stop.asked:
                        break
                    self._chunk([(i, *next(found)) for i in chunk], todo, writers)
                    self._settle(wait=2 * self.engine.batch)
                self._settle(wait=0)
            except BaseException:
                self._salvage()
                raise
            finally:
                found.close()

    def _chunks(self, items: Sequence[Item]) -> Iterator[tuple[range, set[int]]]:
        """Positions of each batch that has something to do, and what that is."""
        for start in range(0, len(items), self.engine.batch):
            chunk = range(start, min(start + self.engine.batch, len(items)))
            todo = set()
            for i in chunk:
                old = self.store.done(items[i])
                if old is None:
                    todo.add(i)
                else:
                    targets = [{**target, "name": self.names[target["class"]]} for target in old["targets"]]
                    self._ready[i] = {**old, "status": "kept", "targets": targets}
            if todo:
                yield chunk, todo

    def _chunk(self, found: list[tuple[int, Item, Sample | InputFailure]], todo: set[int], writers: Any) -> None:
        by_shape: dict[torch.Size, list[tuple[int, Sample]]] = {}
        for i, item, sample in found:
            if isinstance(sample, Sample):
                by_shape.setdefault(sample.x.shape, []).append((i, sample))
            elif i in todo:
                self._fail(i, item, one_line(sample))
        for shape, group in by_shape.items():
            wanted = {i for i, sample in group if i in todo and self._fits(i, sample)}
            self._group(group, wanted, shape, writers)

    def _group(self, group: list[tuple[int, Sample]], wanted: set[int], shape: torch.Size, writers: Any) -> None:
        """Samples of one shape; where one has no finite relevance, the others go on without it."""
        if not wanted or self.stop.asked:
            return
        try:
            self._explain(group, wanted, writers)
        except CaptureError as error:
            self._refuse(error, shape, [(i, s.item) for i, s in group if i in wanted])
        except NotFiniteError as error:
            if len(group) == 1:
                self._fail(group[0][0], group[0][1].item, one_line(error))
                return
            for one in group:
                self._group([one], wanted & {one[0]}, shape, writers)

    def _fits(self, i: int, sample: Sample) -> bool:
        """Whether the sample can be explained; reports it as failed otherwise."""
        why = self._unfit.get(sample.x.shape)
        if why is None:
            try:
                class_choice.check(self.engine.targets, sample.item, self.engine.classes)
                return True
            except InputFailure as error:
                why = one_line(error)
        self._fail(i, sample.item, why)
        return False

    def _refuse(self, error: CaptureError, shape: torch.Size, items: list[tuple[int, Item]]) -> None:
        """An input size that the model does not take is tried once."""
        self._unfit[shape] = f"the model does not take an input {tuple(shape)}: {one_line(error)}"
        for i, item in items:
            self._fail(i, item, self._unfit[shape])

    def _explain(self, group: list[tuple[int, Sample]], wanted: set[int], writers: ThreadPoolExecutor) -> None:
        sheets: dict[int, Pending] = {}
        blocks = self.engine.explain([sample for _, sample in group])
        outputs, chosen = next(blocks)
        for row, (i, sample) in enumerate(group):
            if i in wanted:
                self.store.prepare(sample.item)
                sheets[row] = Pending(
                    Sheet(
                        sample.item, sample.stamp, self.wanted, chosen.classes[row], chosen.scores[row], outputs[row],
                        sample.picture, [self.names[number] for number in chosen.classes[row]],
                        None if chosen.winners is None else chosen.winners[row], self.names.__getitem__,
                    ),
                    Future(),
                )  # fmt: skip
        for row, pending in sheets.items():
            item, x = group[row][1].item, group[row][1].x
            if item.is_table and x.dim() == 1:
                pending.sheet.features = Features(tables.read(item.path).names, x.detach().cpu())
            elif item.is_array and is_signal(x.shape):
                pending.sheet.signal = x.detach().float().cpu()
        for positions, relevance in blocks:
            size = sum(t.nbytes for t in relevance.values()) // len(group)
            for row, pending in sheets.items():
                part = {name: t[row] for name, t in relevance.items()}
                self._budget.take(size)
                writers.submit(self._work, pending, positions, part, size)
            if self.stop.asked and positions.stop < len(chosen.classes[0]):
                blocks.close()
                return  # Nothing of these inputs is written.
        for row, (i, _) in enumerate(group):
            if row in sheets:
                self._pending.append((i, sheets[row]))

    def _work(self, pending: Pending, positions: range, part: dict[str, Tensor], size: int) -> None:
        """In a writer's thread: draw a block; after the last one, write."""
        try:
            if pending.sheet.add(positions, part):
                pending.written.set_result(pending.sheet.write(self.store))
        except BaseException as error:
            if not pending.written.done():
                pending.written.set_exception(error)
        finally:
            self._budget.give(size)

    # Results, in order

    def _settle(self, wait: int) -> None:
        """Record what is written; wait for the oldest until at most ``wait`` are left."""
        while self._pending and (len(self._pending) > wait or self._pending[0][1].written.done()):
            i, pending = self._pending.popleft()
            item = pending.sheet.item
            try:
                files = pending.written.result()
            except OSError as error:
                raise Failure(f"cannot write the results of {item.label}: {one_line(error)}", FAILED) from error
            except (ValueError, TypeError) as error:
                self._fail(i, item, one_line(error))
                continue
            self._finish(i, pending.sheet, files)

    def _finish(self, i: int, sheet: Sheet, files: list[str]) -> None:
        targets = [
            {"class": number, "name": self.names[number], "score": score}
            for number, score in zip(sheet.classes, sheet.scores, strict=True)
        ]
        done = record(sheet.item, "done", targets=targets, files=files)
        try:
            self.store.finish(sheet.item, sheet.stamp, done)
        except OSError as error:
            raise Failure(f"cannot write to the manifest: {one_line(error)}", FAILED) from error
        self._tell_in_order(i, done)

    def _salvage(self) -> None:
        """After an error: what is still written counts."""
        while self._pending:
            try:
                self._settle(wait=0)
            except (Failure, KeyboardInterrupt):
                continue

    def _fail(self, i: int, item: Item, why: str) -> None:
        self._tell_in_order(i, record(item, "failed", error=why))

    def _tell_in_order(self, i: int, line: Record) -> None:
        self._ready[i] = line
        while self._next in self._ready:
            self._tell(self._ready.pop(self._next))
            self._next += 1

    def flush(self) -> None:
        """Tell what is known of later items than the first that is not: after an early end."""
        for i in sorted(self._ready):
            self._tell(self._ready.pop(i))
