"""NeMo Curator's text removal, timed inside its own Python: documents, work folder, rounds → median seconds."""

import os
import shutil
import statistics
import sys
import time

from nemo_curator.core.client import RayClient
from nemo_curator.stages.text.deduplication.removal_workflow import TextDuplicatesRemovalWorkflow


def main():
    docs, work, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # Its pipeline asks for 3.5 logical cores before it starts.
    client = RayClient(num_cpus=max(8, os.cpu_count() or 1))
    client.start()
    seconds = []
    for number in range(rounds + 1):
        shutil.rmtree(f"{work}/peer", ignore_errors=True)
        started = time.perf_counter()
        TextDuplicatesRemovalWorkflow(
            input_path=docs,
            ids_to_remove_path=f"{work}/ids/ExactDuplicateIds",
            output_path=f"{work}/peer",
            duplicate_id_field="_curator_dedup_id",
            id_generator_path=f"{work}/ids/exact_id_generator.json",
            input_files_per_partition=1,
        ).run()
        if number:
            seconds.append(time.perf_counter() - started)
    client.stop()
    print(statistics.median(seconds))


if __name__ == "__main__":
    main()
