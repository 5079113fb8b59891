"""Logs and traces, read."""

import json

import numpy as np
import pytest

import lathe


def test_a_log_as_rows_and_columns(world):
    log = lathe.read_run(world.place / "run")
    lines = (world.place / "run/log.jsonl").read_text(encoding="utf-8").splitlines()
    assert log.rows == [json.loads(line) for line in lines] and len(log) == len(lines)
    assert [row["step"] for row in log.steps] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in log.validations] == [3, 6]
    columns = log.columns()
    assert columns["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert columns["loss"].dtype == np.float64 and columns["step"].dtype == np.int64
    assert columns["loss"].tolist() == [row["loss"] for row in log.steps]
    assert columns["depths"].shape[0] == 6
    # The folder of a run, or one that holds it as `run`, as the quickstart makes.
    assert lathe.read_run(str(world.place)).rows == log.rows
    with pytest.raises(FileNotFoundError):
        lathe.read_run(world.place / "absent")
    with pytest.raises(lathe.LatheError) as raised:
        lathe.read_run(world.place / "text")
    said = world.says("report", world.place / "text", "--html", world.place / "x.html")
    assert str(raised.value) == said


def test_a_trace_as_columns(world):
    path = world.place / "run/traces/step-00000003.parquet"
    trace = lathe.read_trace(path)
    rows = len(trace)
    assert rows > 0 and trace.sites[-1] == 3
    for name in ["step", "sequence", "position", "token", "layer", "recursion"]:
        column = getattr(trace, name)
        assert column.shape == (rows,) and type(column.base).__name__ == "PySliceContainer"
    assert set(trace.step.tolist()) == {3} and set(trace.layer.tolist()) == {-1}
    assert trace.position.max() < 32 and trace.token.max() < 300
    assert trace.target_starts.shape == (rows + 1,)
    assert trace.target_starts[-1] == len(trace.targets)
    # Expert-choice: a row goes on at a recursion, or it stops there.
    goes_on = np.diff(trace.target_starts)
    assert set(goes_on.tolist()) <= {0, 1}
    first = trace.recursion == 0
    assert goes_on[first].sum() >= goes_on[trace.recursion == 2].sum()
    said = world.lathe("inspect", "--trace", path, "--json").stdout
    assert json.loads(said)
    with pytest.raises(FileNotFoundError):
        lathe.read_trace(world.place / "absent.parquet")
    with pytest.raises(lathe.LatheError, match="Parquet"):
        lathe.read_trace(world.place / "tiny.toml")
