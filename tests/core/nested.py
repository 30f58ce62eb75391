"""How does a test find out whether other tests fail? It runs them in a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def run_tests(path: Path, chosen: list[str], folder: Path) -> dict[tuple[str, str], str]:
    """Run tests in other processes: (class, test) to what became of it, "failed" where one of its forms did.

    They mostly wait, so that several processes side by side are as many times as fast.
    """
    runs = [start_tests(path, chosen[part::4], folder / f"report-{part}.xml") for part in range(4)]
    worst: dict[tuple[str, str], str] = {}
    for run, report in runs:
        output, _ = run.communicate(timeout=280)
        assert report.exists(), output
        for case in ElementTree.parse(report).iter("testcase"):
            key = case.attrib["classname"].rpartition(".")[2], case.attrib["name"].partition("[")[0]
            if worst.get(key) != "failed":
                worst[key] = outcome_of(case)
    return worst


def start_tests(path: Path, chosen: list[str], report: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"--rootdir={ROOT}", f"--basetemp={report.with_suffix('')}"]
    run = subprocess.Popen(
        [*command, *(f"{path}::{test}" for test in chosen)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return run, report


def outcome_of(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "error" if "error" in tags else "failed"
    return "skipped" if "skipped" in tags else "passed"
