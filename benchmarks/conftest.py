"""Options, the `measure` fixture, and the table of targets that ends a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import floors, harness, records, targets
from benchmarks.installed import ROOT, require_package


def pytest_addoption(parser):
    group = parser.getgroup("spanbert_ext benchmarks")
    group.addoption(
        "--quick", action="store_true", help="tiny sizes, few samples, nothing recorded by default"
    )
    group.addoption(
        "--no-compiled", action="store_true", help="leave out peers behind torch.compile"
    )
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    group.addoption(
        "--results", default=None, help="directory of the CSV files (benchmarks/results)"
    )


def pytest_configure(config):
    try:
        config.stash[_PACKAGE] = require_package()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None
    device = config.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device")
    config.stash[_ROWS] = []


def pytest_generate_tests(metafunc):
    """`@sizes(full=..., quick=...)` fills the argument `size`."""
    choice = getattr(metafunc.function, "sizes", None)
    if choice is not None:
        quick = metafunc.config.getoption("--quick")
        metafunc.parametrize("size", choice["quick" if quick else "full"])


_ROWS = pytest.StashKey[list]()
_PACKAGE = pytest.StashKey[str]()


def _results(config) -> Path | None:
    given = config.getoption("--results")
    if given is not None:
        return Path(given)
    return None if config.getoption("--quick") else ROOT / "benchmarks" / "results"


@pytest.fixture
def quick(pytestconfig) -> bool:
    """Whether this is a smoke run."""
    return pytestconfig.getoption("--quick")


@pytest.fixture
def compiled(pytestconfig, quick) -> bool:
    """Whether peers behind torch.compile take part; compiling takes longer than a smoke run."""
    return not quick and not pytestconfig.getoption("--no-compiled")


@pytest.fixture
def device(pytestconfig) -> str:
    """cpu or cuda."""
    return pytestconfig.getoption("--device")


@pytest.fixture
def cores() -> int:
    """CPU cores this process may use."""
    from spanbert_ext.device import usable_cores  # not before `require_package` has chosen it

    return usable_cores()


@pytest.fixture
def measure(benchmark, pytestconfig, quick) -> Callable[[harness.Case, str], None]:
    """Runs a case and records it: pytest-benchmark times our variant, and between two of its rounds
    the peers take their turns."""

    def run(case: harness.Case, question: str) -> None:
        if quick:
            case.budget_s, case.min_samples = 0.2, 2
        race = harness.Race(case)
        benchmark.group = f"{case.op} {case.dtype}"
        benchmark.pedantic(race.our_turn, setup=race.peers_turn, rounds=race.rounds, iterations=1)
        rows = records.rows_of(case, race.timings)
        benchmark.extra_info["rows"] = rows
        record(pytestconfig, question, rows)

    return run


@pytest.fixture
def record_rows(pytestconfig) -> Callable[[str, list[dict[str, str]]], None]:
    """Records rows that were measured outside of `measure`."""
    return lambda question, rows: record(pytestconfig, question, rows)


def record(config, question: str, rows: list[dict[str, str]]) -> None:
    """Keep rows for the table and append them to the question's file."""
    config.stash[_ROWS].extend(rows)
    directory = _results(config)
    if directory is not None:
        records.append(directory / f"{question}.csv", rows)


@pytest.fixture(scope="session", autouse=True)
def ceilings(pytestconfig):
    """Measures what the floors are made of, once, before anything else."""
    if pytestconfig.getoption("--quick"):
        floors.use_small_ceilings()
    for case in floors.ceiling_cases(pytestconfig.getoption("--device")):
        rows = records.rows_of(case, harness.Race(case).run())
        record(pytestconfig, "ceilings", rows)


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.section(f"peers and targets ({config.stash[_PACKAGE]} package)")
    terminalreporter.write_line(targets.peer_table(rows))
    terminalreporter.write_line("")
    terminalreporter.write_line(targets.target_table(rows))
