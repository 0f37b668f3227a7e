"""Watches the service: metrics, measurements from /proc, the capacity plan's alerts, logs, audit, traces."""

from agentao_gov.monitor.alerts import Alert, AlertRule, AlertStates, plan_rules
from agentao_gov.monitor.measure import Measurement, Measurer
from agentao_gov.monitor.metrics import Metrics
from agentao_gov.monitor.monitor import Monitor, Observed

__all__ = [
    "Alert",
    "AlertRule",
    "AlertStates",
    "Measurement",
    "Measurer",
    "Metrics",
    "Monitor",
    "Observed",
    "plan_rules",
]
