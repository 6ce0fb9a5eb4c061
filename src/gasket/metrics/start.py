"""The metrics of a replica that is not ready yet: what `/health/ready` answers, as gauges."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from gasket.migrator.starting import StartReport

_GAUGES = (
    ("number", "Which of the revisions of this run is being applied", lambda report: report.number),
    ("revisions", "How many revisions this run applies", lambda report: report.total),
    ("elapsed_seconds", "Since the revision, or the wait, began", lambda report: report.elapsed),
    ("blockers", "Sessions that hold the locks that the revision waits for", lambda report: len(report.blockers)),
    ("percent", "How far PostgreSQL is in a phase of the statement that it runs", lambda report: report.percent),
    ("eta_seconds", "To the end of that phase, at the pace so far", lambda report: report.eta),
)


def start_metrics(report: StartReport) -> Iterable[Metric]:
    """One family for each field that is known."""
    holder = report.holder
    yield InfoMetricFamily(
        "gasket_start",
        "The revision that is being applied, or the session that holds the migration lock",
        {
            "revision": report.revision or "",
            "description": report.description or "",
            "holder_pid": str(holder.pid) if holder else "",
            "holder": holder.application if holder else "",
        },
    )
    for name, meaning, read in _GAUGES:
        if (value := read(report)) is not None:
            yield GaugeMetricFamily(f"gasket_start_{name}", meaning, value=value)
