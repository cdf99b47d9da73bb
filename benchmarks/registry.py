"""The id registry under load: ``python -m benchmarks.registry [--processes 8] [--batches 50] [--files 1000000]``.

Real processes without Spark register at once, with and without one being killed; then a registry of a million files
is opened and 10,000 new files are registered in one call. Every range is checked. No figure needs a Spark session.
"""

import argparse
import itertools
import multiprocessing
import os
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path

from spark_dedup.ids.batches import Batch
from spark_dedup.ids.registry import IdRegistry


def register(place, worker, batches, times):
    """Register batches one by one, and tell how long each call took."""
    registry = IdRegistry.open(None, place)
    for i in range(batches):
        started = time.perf_counter()
        registry.register_batch(f"/data/{worker}/{i}.parquet", worker + 1)
        times.put(time.perf_counter() - started)


def check(place):
    """Return the number of batches, after checking that their ranges touch and start at 0."""
    next_id, ranges = IdRegistry.open(None, place)._state()
    end = 0
    for first, last in sorted(ranges.values()):
        assert first == end, f"gap or overlap at id {end}"
        end = last + 1
    assert end == next_id
    return len(ranges)


def side_by_side(place, processes, batches, *, kill):
    """Return seconds of each call, and of all together."""
    context = multiprocessing.get_context("spawn")
    # A queue each: a killed writer may leave its own locked.
    queues = [context.Queue() for _ in range(processes)]
    workers = [
        context.Process(target=register, args=(str(place), n, batches, queue))
        for n, queue in enumerate(queues)
    ]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    times = []
    if kill:
        times += [queues[0].get() for _ in range(batches // 2)]
        os.kill(workers[0].pid, signal.SIGKILL)
        workers[0].join()
    for queue in queues[kill:]:
        times += [queue.get() for _ in range(batches)]
    took = time.perf_counter() - started
    for worker in workers[kill:]:
        worker.join()
    registered = check(place)
    assert registered >= (processes - kill) * batches
    return times, took


def million(place, files):
    """Return seconds to open a large registry, to register 10,000 files, the same again, and one batch more."""
    registry = IdRegistry.open(None, place)
    step = min(files, 20_000)
    for start in range(0, files, step):
        registry.register(
            [
                Batch(
                    (f"s3://bucket/crawl/{start:08}/part-{i:06}.parquet",), 1000, 10**6 + i, 17 * 10**11 + i
                )
                for i in range(step)
            ]
        )
    new = [Batch((f"s3://bucket/new/part-{i:06}.parquet",), 1000, 10**6, 17 * 10**11) for i in range(10_000)]
    marks = [time.perf_counter()]
    registry = IdRegistry.open(None, place)
    marks.append(time.perf_counter())
    for call in (new, new, [Batch(("one more",), 1)]):
        registry.register(call)
        marks.append(time.perf_counter())
    assert check(place) == files + 10_001
    return [after - before for before, after in itertools.pairwise(marks)]


def main():
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--files", type=int, default=1_000_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        print("| load | median s | 95 % s | worst s | all s |")
        print("|---|---|---|---|---|")
        for kill in (False, True):
            times, took = side_by_side(folder / f"load{kill}", options.processes, options.batches, kill=kill)
            times.sort()
            name = f"{options.processes} processes, {options.batches} batches each" + ", one killed" * kill
            middle, high = statistics.median(times), times[int(0.95 * len(times))]
            print(f"| {name} | {middle:.3f} | {high:.3f} | {times[-1]:.2f} | {took:.1f} |")
        opened, new, again, one = million(folder / "million", options.files)
        print(f"\n| {options.files:,} registered files | s |\n|---|---|")
        print(f"| open | {opened:.3f} |\n| register 10,000 new files | {new:.2f} |")
        print(f"| the same files again | {again:.2f} |\n| one more batch | {one:.3f} |")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
