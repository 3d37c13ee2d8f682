"""What a command says while it works."""

import pytest

from spanbert_ext.training.progress import Progress, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5s"), (65, "1m05s"), (3700, "1h01m"), (200_000, "2d07h")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_progress_gives_rate_and_rest(capsys, monkeypatch):
    """A second pass has its own rate, and what was there before does not count for it."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(seconds=1.0)
    for doing, moments in {
        "counting": [(0, 0), (0.5, 500_000), (2, 1_000_000)],
        "encoding": [(10, 2_000_000), (14, 3_000_000), (14.5, 4_000_000)],
    }.items():
        for clock[0], done in moments:
            progress(doing, done, 4_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "counting 1.0/4.0 MB  0.50 MB/s  ETA 6s",
        "encoding 3.0/4.0 MB  0.25 MB/s  ETA 4s",
    ]
