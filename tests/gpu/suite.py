# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The tests marked ``gpu``, in a process of their own."""

import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu.harness import Check

HERE = Path(__file__).parent
DRY = "ANOMALIB_INP_GPU_TESTS_ON_CPU"
"""Runs the tests marked ``gpu`` on the CPU: a dry run, to see that they run."""


def section(check: Check) -> None:
    """Run the tests."""
    check.part("tests", lambda: run(check), needs=90)


def run(check: Check) -> dict[str, Any]:
    """Run the tests, in several processes where that is possible; what has failed is kept with its message."""
    report = check.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(HERE), "-p", "no:cacheprovider", f"--junitxml={report}"]
    if check.dry:
        command += ["-k", "not compiled and not exports"]  # slow on a CPU, where other tests do the same
    else:
        command += ["-n", "6"] if util.find_spec("xdist") else []
        command += ["--timeout", "120"] if util.find_spec("pytest_timeout") else []
    environment = {**os.environ, **({DRY: "1"} if check.dry else {})}
    log = check.path.with_name("tests.log")  # stays, whatever becomes of the tests
    with log.open("w") as output:
        subprocess.run(
            command,
            check=False,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=240,
            env=environment,
            cwd=HERE.parents[1],
        )
    if not report.exists():
        raise RuntimeError(log.read_text()[-3000:])
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - pytest has just written it
    failed = {}
    for case in cases:
        for fault in (*case.findall("failure"), *case.findall("error")):
            failed[case.get("name", "")] = (fault.text or "")[-3000:]
    return {
        "ran": len(cases),
        "skipped": {case.get("name", ""): fault.get("message") for case in cases for fault in case.findall("skipped")},
        "failed": failed,
        "slowest": {case.get("name"): float(case.get("time", 0)) for case in sorted(cases, key=_time)[-5:]},
        "limits": {"tests that failed": (len(failed), 0), "no test at all": (int(not cases), 0)},
    }


def _time(case: Any) -> float:
    return float(case.get("time", 0))
