"""What Java says on stderr: told where it does not start, and passed on later where nobody should miss it."""

import os
import re
import subprocess
import sys
import threading

import pytest
from sessions import child_environment

from spark_dedup.launch import java_stderr

START = """
import sys
from spark_dedup import build_session
spark = build_session(device="cpu", master="local[1]", conf={"spark.driver.memory": sys.argv[1]})
try:
    spark.sql("SELECT raise_error('boom')").collect()
except Exception as error:
    assert "boom" in str(error)
spark._jvm.java.lang.System.err.println("java.lang.OutOfMemoryError: said")
spark.stop()
"""


def start(memory):
    """Start a session in a process of its own; return what it leaves on stderr."""
    command = [sys.executable, "-c", START, memory]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=child_environment())
    return ran.stderr.splitlines()


@pytest.mark.parametrize(
    ("memory", "why"),
    [
        ("9000000g", "Could not reserve enough space .*"),
        ("12monkeys", "Invalid maximum heap size: -Xmx12monkeys"),
    ],
)
def test_why_java_did_not_start(memory, why):
    said = rf"spark_dedup\.errors\.InputError: Spark's Java machine did not start \({why}\): mend .*spark\.driver"
    assert re.match(said, start(memory)[-1])


def test_a_session_is_quiet_but_for_what_is_fatal():
    """Neither the chat of the start nor the trace of a task's error, which the job raises."""
    assert start("1g") == ["java.lang.OutOfMemoryError: said"]


def test_what_is_passed_on(capfd):
    with java_stderr():
        java = os.dup(2)
        os.write(java, b"WARNING: Using incubator modules\n")
    said = [
        "10:00:00 ERROR TaskSetManager: Task 0 failed",
        "\tat org.apache",
        "a Python worker's own words",
        "10:00:01 ERROR SparkUncaughtExceptionHandler: Uncaught exception in thread",
        "\tat java.base",
        "# A fatal error has been detected by the Java Runtime Environment:",
        "10:00:02 WARN GpuOverrides: ",
        "  !Exec <FileSourceScanExec> cannot run on GPU",
        "10:00:03 ERROR Executor: java.lang.OutOfMemoryError: Java heap space",
    ]
    os.write(java, "".join(f"{line}\n" for line in said).encode())
    os.close(java)
    for thread in threading.enumerate():
        if thread.name == "java-stderr" and thread is not threading.main_thread():
            thread.join(1)
    assert capfd.readouterr().err.splitlines() == [said[i] for i in (3, 5, 6, 7, 8)]
