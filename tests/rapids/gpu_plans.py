"""Read what the RAPIDS plugin says about a query: which nodes of its plan run on the GPU, and why others do not.

With `spark.rapids.sql.mode=explainOnly` the real plugin plans every query, logs a line per node and lets the CPU
run it. The log holds writes and every query that a job starts, which the plugin's explain function for a single
DataFrame does not, so the log is what is read.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# A node's line: indentation, mark, kind ("Exec", "Expression", ... or nothing), <class>, what is said of it.
_LINE = re.compile(r"^(?P<indent> *)(?P<mark>[*!@#^])[ ]?(?P<kind>\w*) ?<(?P<name>[\w.$]+)> (?P<said>.*)$")
_EVENT = re.compile(r"^@@(GpuOverrides|GpuOverrideUtil)\n", re.MULTILINE)

LOG4J = """
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{{HH:mm:ss}} %p %c{{1}}: %m%n%ex{{3}}
appender.report.type = File
appender.report.name = report
appender.report.fileName = {report}
appender.report.layout.type = PatternLayout
appender.report.layout.pattern = @@%c{{1}}%n%m%n%ex{{none}}
logger.overrides.name = com.nvidia.spark.rapids.GpuOverrides
logger.overrides.level = info
logger.overrides.appenderRef.report.ref = report
logger.overrides.additivity = false
logger.failures.name = com.nvidia.spark.rapids.GpuOverrideUtil
logger.failures.level = info
logger.failures.appenderRef.report.ref = report
logger.failures.additivity = false
"""


@dataclass(frozen=True)
class Node:
    """A line of the report."""

    mark: str  # * on the GPU, ! cannot, @ could but its surroundings cannot, # left out, ^ on the CPU from the GPU
    kind: str
    name: str
    said: str

    @property
    def is_fallback(self) -> bool:
        return self.mark not in "*#"

    @property
    def is_consequence(self) -> bool:
        """Whether another line gives the reason: an expression that could run where its operator cannot."""
        return self.mark == "@" and "because" not in self.said

    def __str__(self) -> str:
        reason = self.said.partition(" because ")[2] or self.said
        return f"{self.kind} {self.name}: {reason[:300]}".strip()


@dataclass(frozen=True)
class Plan:
    """One query as the plugin planned it; `failure` when the plugin itself broke on it."""

    nodes: tuple[Node, ...]
    failure: str = ""

    @property
    def operators(self) -> list[str]:
        """Names of the plan's operators, outermost first, whether on the GPU or not."""
        return [n.name for n in self.nodes if n.kind in ("Exec", "Output") or n.name.endswith("Exec")]

    @property
    def is_about_delta_log(self) -> bool:
        """Whether Delta reads its own log here: small, on the driver's account, and not our plan."""
        text = " ".join(n.said for n in self.nodes)
        return "sql.delta.actions" in text or "_delta_log" in text or _delta_state(self.nodes)


def _delta_state(nodes: tuple[Node, ...]) -> bool:
    columns = {m[1] for n in nodes for m in re.finditer(r"\b(protocol|metaData|txn|add|remove)#\d+", n.said)}
    return {"protocol", "metaData"} <= columns or {"add", "remove"} <= columns or {"add", "txn"} <= columns


def parse(log: str) -> list[Plan]:
    """Return the plans of a report, in the order in which they were planned."""
    plans = []
    parts = _EVENT.split(log)
    for logger, event in zip(parts[1::2], parts[2::2], strict=True):
        if logger == "GpuOverrideUtil":
            plans.append(Plan((), failure=event.strip().splitlines()[0]))
            continue
        nodes: list[Node] = []
        for line in event.splitlines():
            found = _LINE.match(line)
            if found:
                nodes.append(Node(found["mark"], found["kind"], found["name"], found["said"]))
            elif line.strip() and nodes:  # a literal with a line break in it
                last = nodes[-1]
                nodes[-1] = Node(last.mark, last.kind, last.name, f"{last.said}\n{line}")
            elif line.strip():
                raise ValueError(f"the plugin's report reads differently than expected: {line!r}")
        if nodes:
            plans.append(Plan(tuple(nodes)))
    return plans


class Recorder:
    """Records the report of what is run inside :meth:`plans_of`."""

    def __init__(self, log: Path):
        self._log = log

    def plans_of(self, action: Callable[[], object]) -> list[Plan]:
        """Run `action` and return the plans of all queries it started, without those of Delta's own log."""
        before = self._log.stat().st_size
        action()
        with self._log.open(encoding="utf-8") as file:
            file.seek(before)
            plans = parse(file.read())
        return [plan for plan in plans if not plan.is_about_delta_log]


def assert_on_gpu(
    plans: list[Plan], *, must: tuple[str, ...] = (), allowed: dict[str, str] | None = None
) -> None:
    """Fail on each node that is not on the GPU, naming it and the plugin's reason.

    Args:
        plans: what was planned.
        must: operators that have to be there and on the GPU: without them an empty report would pass.
        allowed: pattern of "class name: the plugin's reason" of a node that may stay on the CPU → why that is
            right. A pattern that does not occur fails too, so that the list stays true.
    """
    allowed = allowed or {}
    assert plans, "the plugin reported no plan at all"
    broken = [plan.failure for plan in plans if plan.failure]
    fallbacks = [n for plan in plans for n in plan.nodes if n.is_fallback]
    causes = [n for n in fallbacks if not n.is_consequence]
    reasons = [n for n in causes if not any(re.search(pattern, str(n)) for pattern in allowed)]
    lost = reasons or ([] if allowed else fallbacks)
    shown = "\n".join(dict.fromkeys([*broken, *map(str, lost)]))
    assert not broken, f"the plugin failed on the query:\n{shown}"
    assert not lost, f"not on the GPU:\n{shown}"
    on_gpu = {n.name for plan in plans for n in plan.nodes if n.mark == "*"}
    assert not set(must) - on_gpu, (
        f"missing on the GPU: {sorted(set(must) - on_gpu)}; there: {sorted(on_gpu)}"
    )
    stale = [pattern for pattern in allowed if not any(re.search(pattern, str(n)) for n in causes)]
    assert not stale, f"exceptions that no longer occur, take them out: {stale}"
