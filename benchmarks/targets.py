"""What the project has promised, as data, and the tables that hold it against measured rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import records
from benchmarks.figures import shapes_of
from benchmarks.installed import ROOT

Row = dict[str, str]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Args:
        what: the line's name.
        op, dtype, device: of the rows it reads.
        shapes: shapes the rows must have.
        peer: variant to compare with; None for an absolute limit.
        ratio: the peer's time over ours, at least this.
        limit_us: our time divided by `per`, at most this.
        limit_mb: our extra memory, at most this.
        per: shape whose size divides the time in the table (rows of a batch), None for whole calls.
        threads: rows measured with this number of CPU threads; 0 means the largest number.
        peer_threads: the same for the peer's rows; None as for ours.
        variant: ours, or another name for another mode of ours.
        peer_shapes: where the peer was measured at another size; both times are then per `per`.
    """

    what: str
    op: str
    dtype: str
    device: str
    shapes: dict[str, int | str]
    peer: str | None = None
    ratio: float | None = None
    limit_us: float | None = None
    limit_mb: float | None = None
    per: str | None = None
    threads: int | None = None
    peer_threads: int | None = None
    variant: str = "ours"
    peer_shapes: dict[str, int | str] | None = None


def _cpu() -> list[Target]:
    mask = ("span_mask", "int64", "cpu")
    found = [
        Target(
            "masker, time per row", *mask, {"rows": 64, "length": 512},
            limit_us=2.0, per="rows", threads=1,
        ),
        Target(
            "masker / transformers whole word", *mask, {"rows": 64, "length": 512},
            "transformers_whole_word", 110, per="rows", threads=1,
        ),
        # "Scale over threads": four fifths of a core for each of two.
        Target(
            "masker, all threads / one thread", *mask, {"rows": 1024},
            "ours", 1.6, per="rows", threads=0, peer_threads=1,
        ),
    ]  # fmt: skip
    for dtype, peer, ratio in (
        ("fp32", "ragged_eager", 2.5),
        ("fp32", "padded_original", 8),
        ("bf16", "ragged_eager", 2),
    ):
        shapes = {"rows": 8, "hidden": 768}
        found.append(Target(f"SBO / {_plain(peer)}", "sbo", dtype, "cpu", shapes, peer, ratio))
    for dtype, peer, ratio in (
        ("bf16", "eager", 2),
        ("bf16", "torch_chunked", 10),
        ("fp32", "eager", 1.8),
    ):
        shapes = {"rows": 1024, "hidden": 768, "vocabulary": 28996}
        what = f"vocabulary loss / {_plain(peer)}"
        found.append(Target(what, "cross_entropy", dtype, "cpu", shapes, peer, ratio))
    for dtype, ratio in (("bf16", 2), ("fp32", 1.5)):
        shapes = {"preset": "base", "rows": 2, "length": 512, "attention_dropout": 0.0}
        what = "step, base / transformers MLM alone"
        found.append(Target(what, "step", dtype, "cpu", shapes, "transformers", ratio, per="rows"))
    what = "step, base, precision auto / transformers MLM alone in bf16"
    shapes = {"preset": "base", "rows": 2, "length": 512, "attention_dropout": 0.0}
    found.append(
        Target(
            what, "step", "bf16", "cpu", shapes, "transformers", 2, per="rows", variant="ours_auto"
        )
    )
    return found


def _gpu_ops() -> list[Target]:
    mask = ("span_mask", "int64", "cuda")
    found = [
        Target("masker, 256 rows in a graph", *mask, {"rows": 256}, limit_us=12),
        Target(
            "masker / transformers whole word, one core", *mask, {"rows": 256},
            "transformers_whole_word", 4500,
        ),
        Target(
            "masker, 8192 rows, time per row", *mask, {"rows": 8192},
            limit_us=1 / 200, per="rows",
        ),
    ]  # fmt: skip
    base = {"rows": 256, "hidden": 768}
    sbo = ("sbo", "bf16", "cuda")
    found += [
        Target("SBO, base, 256 rows", *sbo, base, limit_us=330),
        Target("SBO, base, 64 rows", *sbo, {"rows": 64, "hidden": 768}, limit_us=130),
    ]
    for peer, ratio in (("padded_original", 12), ("ragged_eager", 2.5), ("ragged_compiled", 1.8)):
        found.append(Target(f"SBO / {_plain(peer)}", *sbo, base, peer, ratio))
    loss = ("cross_entropy", "bf16", "cuda")
    rows = {"rows": 153 * 256}
    for hidden, limit in ((768, 9.8e3), (1024, 12.8e3)):
        shapes = {**rows, "hidden": hidden}
        found.append(Target(f"vocabulary loss, H={hidden}", *loss, shapes, limit_us=limit))
    shapes = {**rows, "hidden": 768}
    found.append(Target("vocabulary loss, extra memory", *loss, shapes, limit_mb=1.3e9 / 2**20))
    for peer, ratio in (("eager", 1.6), ("compiled_chunked", 1.15), ("liger", 2)):
        found.append(Target(f"vocabulary loss / {_plain(peer)}", *loss, shapes, peer, ratio))
    return found


def _gpu_steps() -> list[Target]:
    found = []
    fast = {"length": 512, "attention_dropout": 0.0}
    for preset, rows, floor, ratios in (
        ("base", 256, 1550, {"transformers": 1.75, "transformers_compiled": 1.3, "assembly": 1.1}),
        ("large", 128, 475, {"transformers": 1.35, "transformers_compiled": 1.1, "assembly": 1.03}),
        ("base", 8, None, {"transformers": 4, "transformers_graphs": 1.2}),
    ):
        shapes = {"preset": preset, "rows": rows, **fast}
        name = f"step, {preset}, {rows} rows"
        if floor:
            limit = 1e6 / floor
            found.append(Target(name, "step", "bf16", "cuda", shapes, limit_us=limit, per="rows"))
        for peer, ratio in ratios.items():
            what = f"{name} / {_plain(peer)}"
            found.append(Target(what, "step", "bf16", "cuda", shapes, peer, ratio, per="rows"))
    original = {"preset": "base", "rows": 64}
    shapes = {"preset": "base", "rows": 256, **fast}
    what = "step, base, 256 rows / original at 64"
    found.append(
        Target(
            what, "step", "bf16", "cuda", shapes, "original", 2.8, per="rows", peer_shapes=original
        )
    )
    real = Target(
        "step, base, packed real lengths / full rows", "step", "bf16", "cuda", shapes,
        "ours", 0.93, per="rows", variant="ours_packed",
    )  # fmt: skip
    return [*found, real]


def _plain(variant: str) -> str:
    return variant.replace("_", " ")


TARGETS: tuple[Target, ...] = (*_cpu(), *_gpu_ops(), *_gpu_steps())


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured: times in microseconds (memory in MiB)."""

    target: Target
    value: float
    peer_value: float | None
    met: bool

    @property
    def ratio(self) -> float | None:
        """The peer's time over ours."""
        return None if self.peer_value is None else self.peer_value / self.value


def judge(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Verdicts on the targets that the rows speak of; ratios only within one session."""
    found = []
    for target in targets:
        ours = _newest(rows, target, target.variant, target.shapes, target.threads)
        if ours is None:
            continue
        if target.limit_mb is not None:
            value = float(ours["extra_mb"] or "nan")
            found.append(Verdict(target, value, None, value <= target.limit_mb))
            continue
        value = _time(ours, target)
        if target.peer is None:
            found.append(Verdict(target, value, None, value <= target.limit_us))
            continue
        session = [row for row in rows if row["date"] == ours["date"]]
        threads = target.threads if target.peer_threads is None else target.peer_threads
        shapes = target.peer_shapes or target.shapes
        peer = _newest(session, target, target.peer, shapes, threads)
        if peer is not None:
            peer_value = _time(peer, target)
            found.append(Verdict(target, value, peer_value, peer_value / value >= target.ratio))
    return found


def _newest(rows, target: Target, variant: str, shapes, threads: int | None) -> Row | None:
    wanted = {name: str(size) for name, size in shapes.items()}
    fitting = [
        row
        for row in rows
        if (row["op"], row["dtype"], row["device"]) == (target.op, target.dtype, target.device)
        and row["variant"] == variant
        and row["cache"] == "cold"
        and row["median_us"]
        and wanted.items() <= shapes_of(row).items()
    ]
    if threads is not None and fitting:
        most = max(int(row["threads"]) for row in fitting)
        fitting = [row for row in fitting if int(row["threads"]) == (threads or most)]
    return max(fitting, key=lambda row: row["date"]) if fitting else None


def _time(row: Row, target: Target) -> float:
    return float(row["median_us"]) / (float(shapes_of(row)[target.per]) if target.per else 1.0)


def target_table(rows: Sequence[Row]) -> str:
    """Every target the rows speak of: our time, the peer's, the ratio, the target, met or not."""
    verdicts = judge(rows)
    if not verdicts:
        return "no target speaks of these sizes"
    lines = [("target", "dtype", "ours", "peer", "ratio", "asked", "met")]
    for verdict in verdicts:
        target = verdict.target
        is_memory = target.limit_mb is not None
        show = _megabytes if is_memory else _duration
        unit = f"/{target.per.removesuffix('s')}" if target.per else ""
        limit = target.limit_mb if is_memory else target.limit_us
        lines.append(
            (
                target.what,
                target.dtype,
                show(verdict.value) + unit,
                "" if verdict.peer_value is None else show(verdict.peer_value) + unit,
                "" if verdict.ratio is None else f"{verdict.ratio:.2f}",
                f">= {target.ratio:g}" if target.ratio else f"<= {show(limit)}{unit}",
                "yes" if verdict.met else "NO",
            )
        )
    met = sum(verdict.met for verdict in verdicts)
    return f"{aligned(lines)}\n{met} of {len(verdicts)} targets met"


def peer_table(rows: Sequence[Row]) -> str:
    """Every row: time, spread, how many times ours, share of the floor, memory, error."""
    lines = [
        ("op", "shapes", "dtype", "variant", "median", "p20..p80", "x ours", "x floor", "MiB",
         "error", "note"),
    ]  # fmt: skip
    ours: dict[tuple, float] = {}
    for row in rows:
        if row["op"] in ("gemm", "copy"):
            continue
        key = (row["op"], row["shapes"], row["dtype"], row["threads"])
        time = float(row["median_us"]) if row["median_us"] else None
        if row["variant"] == "ours" and row["cache"] == "cold" and time:
            ours[key] = time
        floor = float(row["floor_us"]) if row["floor_us"] else None
        spread = f"{_duration(row['p20_us'])}..{_duration(row['p80_us'])}" if time else ""
        lines.append(
            (
                row["op"],
                f"{row['shapes']} threads={row['threads']}",
                row["dtype"],
                row["variant"] + (" (warm)" if row["cache"] == "warm" else ""),
                _duration(time) if time else "-",
                spread,
                f"{time / ours[key]:.2f}" if time and key in ours else "",
                f"{time / floor:.1f}" if time and floor else "",
                f"{float(row['extra_mb']):.0f}" if row["extra_mb"] else "",
                row["rel_error"] and f"{float(row['rel_error']):.0e}",
                row["note"],
            )
        )
    return aligned(lines)


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as a table; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])


def _duration(value: float | str) -> str:
    us = float(value)
    for limit, unit, scale in ((1e3, "us", 1.0), (1e6, "ms", 1e3)):
        if us < limit:
            return f"{us / scale:.3g} {unit}"
    return f"{us / 1e6:.3g} s"


def _megabytes(value: float) -> str:
    return f"{value:.0f} MiB"


def main() -> int:
    """`python -m benchmarks.targets`: the table of what `benchmarks/results` holds."""
    print(target_table(records.read_measured(ROOT / "benchmarks" / "results")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
