"""Logs of runs."""

import os
from typing import Any

from . import _lathe


class RunLog:
    """The rows of a run's log.jsonl, in their order."""

    def __init__(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.path = path
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<lathe.RunLog {self.path}: {len(self.rows)} rows>"

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of optimizer steps."""
        return [row for row in self.rows if "loss" in row and "event" not in row]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The rows of validations: "step", and "validation" with "training" and "causal"."""
        return [row for row in self.rows if "validation" in row]

    def columns(self) -> dict[str, Any]:
        """The numbers of the optimizer steps as NumPy arrays of [steps], by field.

        Whole numbers are int64, others float64 with nan where a step has none. Lists of numbers
        that are equally long in all steps, such as "depths", become arrays of [steps, length].
        """
        import numpy

        rows = self.steps
        names = dict.fromkeys(name for row in rows for name in row)
        found = {}
        for name in names:
            values = [row.get(name) for row in rows]
            if all(isinstance(value, list) for value in values):
                lengths = {len(value) for value in values}
                flat = all(isinstance(x, (int, float)) for value in values for x in value)
                if len(lengths) == 1 and flat:
                    found[name] = numpy.array(values)
            elif all(type(value) is int for value in values):
                found[name] = numpy.array(values, dtype=numpy.int64)
            elif all(value is None or type(value) in (int, float) for value in values):
                known = [float("nan") if value is None else value for value in values]
                found[name] = numpy.array(known, dtype=numpy.float64)
        return found


def read_run(path: str | os.PathLike[str]) -> RunLog:
    """Reads the log of a run, from its folder or from one that holds it as `run`.

    FileNotFoundError where there is nothing, LatheError for what is no run.
    """
    return RunLog(os.fspath(path), _lathe._read_log(path))
