"""Writes a gate's result as JUnit XML, which every CI system reads.

There is no standard. What Jenkins validates is the strictest reading in use (no properties in a test case, no count of
skipped cases at the root); `tests/report/junit.xsd` holds the report to it.
"""

from __future__ import annotations

from typing import cast

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from agentao_gov.report.gate import GateCase, GateReport, clean

__all__ = ["junit_xml"]


def junit_xml(report: GateReport) -> str:
    """The report as JUnit XML.

    A case that is inconclusive is an *error*: CI must not show it green. A warning passes and says so in `system-out`.
    """
    suite = TestSuite(clean(report.name))
    for name, value in report.properties.items():
        suite.add_property(clean(name), clean(value))
    for case in report.cases:
        suite.add_testcase(_test_case(report.name, case))
    if not report.cases and report.conclusion != "pass":
        # A suite without cases counts as green in most CI systems.
        suite.add_testcase(_test_case(report.name, GateCase("run", report.headline, "inconclusive")))
    suite.update_statistics()  # type: ignore[no-untyped-call]
    xml = JUnitXml()
    xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    # Not the sum of the cases: a load test's thresholds take no time, the load does.
    suite.time = xml.time = round(report.duration_s, 3)
    # Jenkins's schema knows this count for a suite only.
    xml._elem.attrib.pop("skipped", None)
    body = cast("bytes", xml.tostring())  # type: ignore[no-untyped-call]
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body.decode()}\n'


def _test_case(suite: str, case: GateCase) -> TestCase:
    name = clean(f"agentao-gov.{suite}.{case.id}")
    test = TestCase(clean(case.title), classname=name, time=case.duration_ms / 1000)
    summary = clean(f"expected {case.expected}; observed {case.observed}")
    detail = clean("\n".join((*case.evidence, case.remedy)).strip(), one_line=False)
    if case.status == "fail":
        test.result = [_with_text(Failure(summary, "fail"), detail)]
    elif case.status == "inconclusive":
        test.result = [_with_text(Error(summary, "inconclusive"), detail)]
    elif case.status == "skip":
        test.result = [Skipped(clean(case.observed or "skipped"))]
    else:
        test.system_out = f"{case.status}: {summary}\n{detail}".strip()
    return test


def _with_text(result: Failure | Error, text: str) -> Failure | Error:
    result.text = text
    return result
