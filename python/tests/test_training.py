"""Training from Python: the files of `lathe train`, bit for bit, through stops and interrupts."""

import os
import signal
import threading
import time

import pytest

import lathe


def files(run):
    """What a run wrote that the clock does not touch."""
    found = {}
    for folder in ["checkpoints", "traces"]:
        for path in sorted((run / folder).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(run))] = path.read_bytes()
    found["log.jsonl"] = (run / "log.jsonl").read_bytes()
    assert len(found) > 8
    return found


def test_a_run_from_python_is_that_of_the_command_line(world, tmp_path):
    seen, saved = [], []
    training = lathe.train(
        world.place / "tiny.toml",
        out=tmp_path / "run",
        on_validation=lambda step, numbers: seen.append((step, numbers["causal"]["all"]["nll"])),
        on_save=saved.append,
    )
    assert (training.step, training.steps, training.resumed_from) == (0, 6, 0)
    steps = list(training)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6] and training.ended
    assert files(tmp_path / "run") == files(world.place / "run")
    rows = lathe.read_run(tmp_path / "run").steps
    assert [step.record for step in steps] == rows
    assert [step.loss for step in steps] == [row["loss"] for row in rows]
    assert all(step.tokens_per_second > 0 < step.flops_per_second for step in steps)
    assert [step for step, _ in seen] == [3, 6] == [step for step, _ in training.validations]
    assert training.result["causal"]["all"]["nll"] == seen[-1][1]
    assert [path.name for path in saved] == ["step-00000002", "step-00000004", "step-00000006"]
    assert training.checkpoint == saved[-1]
    # A run that is through has no step left.
    again = lathe.train(world.place / "tiny.toml", out=tmp_path / "run")
    assert again.resumed_from == 6 and list(again) == []
    assert again.result["causal"]["all"]["nll"] == seen[-1][1]
    assert files(tmp_path / "run") == files(world.place / "run")


def test_stops_of_every_kind_leave_no_trace(world, tmp_path):
    recipe, out = world.place / "tiny.toml", tmp_path / "run"
    for step in lathe.train(recipe, out=out):  # dropped by the loop
        assert step.step == 1
        break
    with lathe.train(recipe, out=out) as training:
        assert training.resumed_from == 1
        next(training)
    assert training.ended and training.checkpoint.name == "step-00000002"
    training = lathe.train(recipe, out=out)
    assert (training.resumed_from, next(training).step) == (2, 3)
    training.stop()
    training.stop()
    assert next(training, None) is None
    with pytest.raises(RuntimeError, match="mine"), lathe.train(recipe, out=out) as training:
        next(training)
        raise RuntimeError("mine")

    def refuse(path):
        raise RuntimeError("of the callback")

    # Opened and left without a step: nothing changes.
    before = files(out)
    lathe.train(recipe, out=out).stop()
    assert files(out) == before
    seen = []
    with pytest.raises(RuntimeError, match="of the callback"):
        for step in lathe.train(recipe, out=out, on_save=refuse):
            seen.append(step.step)
    assert seen == [5, 6]
    assert list(lathe.train(recipe, out=out)) == []
    expected = files(world.place / "run")
    found = files(out)
    assert {name: found[name] for name in found if "step-00000006" in name} == {
        name: expected[name] for name in expected if "step-00000006" in name
    }
    assert found["log.jsonl"] == expected["log.jsonl"]


def test_ctrl_c_saves_and_is_raised(world, tmp_path):
    recipe, out = world.place / "tiny.toml", tmp_path / "run"
    done = []
    with pytest.raises(KeyboardInterrupt):
        for step in lathe.train(recipe, out=out, set={"train.steps": 10_000}):
            done.append(step.step)
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
    assert 3 <= done[-1] < 10_000
    again = lathe.train(recipe, out=out, set={"train.steps": 10_000}, accept_changes=True)
    assert again.resumed_from >= 3
    again.stop()


@pytest.fixture(scope="module")
def patient(world):
    """A model with room for a text that takes seconds."""
    out = world.place / "patient"
    fields = {"model.context": 1536, "train.steps": 1, "log.trace_every": 0}
    assert len(list(lathe.train(world.place / "tiny.toml", out=out, set=fields))) == 1
    return lathe.load(out)


def test_ctrl_c_ends_a_generation(patient):
    options = {"max_tokens": 1500, "ignore_end": True}
    began = time.monotonic()
    assert len(patient.generate("the model", **options).ids) == 1500
    whole = time.monotonic() - began

    sent = []

    def interrupt():
        time.sleep(whole / 10)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    for ask in [patient.generate, lambda *words, **more: list(patient.stream(*words, **more))]:
        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            ask("the model", **options)
        assert time.monotonic() - sent[-1] < whole / 2
        other.join()


def test_other_threads_go_on_while_a_model_computes(patient):
    ticks, through = [], threading.Event()

    def tick():
        while not through.wait(0.001):
            ticks.append(time.monotonic())

    other = threading.Thread(target=tick)
    other.start()
    began = time.monotonic()
    patient.generate("the model", max_tokens=600, ignore_end=True)
    ended = time.monotonic()
    through.set()
    other.join()
    inside = [at for at in ticks if began < at < ended]
    # One long call, in which a holder of the GIL would let nobody else tick.
    assert len(inside) > 20 and inside[-1] - inside[0] > (ended - began) / 2


def test_fields_are_set_and_refused(world, tmp_path):
    recipe = world.place / "tiny.toml"
    short = lathe.train(recipe, out=tmp_path / "a", set={"train.steps": 1, "train.seed": 9})
    assert [step.step for step in short] == [1]
    world.lathe(
        "train", "tiny.toml", "--out", tmp_path / "b", "--set", "train.steps=1", "--set",
        "train.seed=9",
    )
    assert files(tmp_path / "a") == files(tmp_path / "b")
    out = tmp_path / "c"
    for fields, needle in [
        ({"train.stepz": 1}, "unknown key `train.stepz`.*did you mean `steps`"),
        ({"train.steps": 0}, "train.steps"),
        ({"train.steps": "many"}, "train.steps"),
        ({"model.norm_eps": float("nan")}, "set\\['model.norm_eps'\\]|expected a value"),
        ({"": 1}, "empty part"),
        ({"train.seed": None}, "is or holds None"),
        ({"train.freeze": [None]}, "is or holds None"),
    ]:
        with pytest.raises(ValueError, match=needle):
            lathe.train(recipe, out=out, set=fields)
    for fields in [{1: 2}, {"train.steps": object()}]:
        with pytest.raises(TypeError):
            lathe.train(recipe, out=out, set=fields)
    with pytest.raises(ValueError, match="accept_changes"):
        lathe.train(recipe, out=out, resume=False, accept_changes=True)
    with pytest.raises(FileNotFoundError, match="reading the recipe"):
        lathe.train(world.place / "absent.toml", out=out)
    assert not out.exists()


def test_refusals_are_those_of_the_command_line(world, tmp_path):
    recipe = world.place / "tiny.toml"
    with pytest.raises(lathe.LatheError) as raised:
        lathe.train(recipe, out=world.place / "run", resume=False)
    said = world.says("train", recipe, "--out", world.place / "run", "--resume", "never")
    assert str(raised.value) == said
    broken = tmp_path / "broken.toml"
    broken.write_text("[model]\nwidht = 3\n", encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        lathe.train(broken, out=tmp_path / "run")
    assert str(raised.value) == world.says("train", broken, "--out", tmp_path / "run")
    with lathe.train(recipe, out=tmp_path / "held") as holder:
        next(holder)
        with pytest.raises(lathe.LatheError, match="held"):
            lathe.train(recipe, out=tmp_path / "held")
