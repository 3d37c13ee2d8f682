"""Benchmarks of spanbert_ext against what a user could pick instead.

`pytest benchmarks/` measures on this machine, `python -m benchmarks.plot` draws what was measured,
`python -m benchmarks.gpu --out DIR` does everything a GPU is needed for. Results are rows of
`results/*.csv`, one file per question.
"""

from benchmarks.installed import prefer_installed

prefer_installed()
