"""Refusals: classes that Python programs expect, in the words of the command line."""

import subprocess
import sys

import pytest

import lathe


def test_what_is_not_there(world):
    absent = world.place / "absent"
    with pytest.raises(FileNotFoundError) as raised:
        lathe.load(absent)
    assert isinstance(raised.value, lathe.LatheError)
    assert str(raised.value) == world.says("generate", absent, "--prompt", "x")
    with pytest.raises(FileNotFoundError):
        lathe.load(world.place / "absent.gguf")


def test_options_of_a_model(world, tmp_path):
    run, broken = world.place / "run", tmp_path / "broken.jinja"
    broken.write_text("{% trans %}", encoding="utf-8")
    with pytest.raises(ValueError, match="chat template cannot be rendered"):
        lathe.load(run, chat_template=str(broken))
    with pytest.raises(FileNotFoundError, match="absent.jinja"):
        lathe.load(run, chat_template=str(tmp_path / "absent.jinja"))
    with pytest.raises(FileNotFoundError, match="the adapters of"):
        lathe.load(run, adapter=tmp_path / "absent")
    with pytest.raises(lathe.LatheError, match="the adapters of") as raised:
        lathe.load(run, adapter=tmp_path)
    assert not isinstance(raised.value, FileNotFoundError)


def test_threads_are_settled_by_training(world, tmp_path):
    said = (
        "import lathe, sys\n"
        "run = lathe.train(sys.argv[1], out=sys.argv[2])\n"
        "try: lathe.set_threads(1)\n"
        "except ValueError as error: print(error)\n"
        "run.stop()\n"
    )
    line = [sys.executable, "-c", said, world.place / "tiny.toml", tmp_path / "run"]
    done = subprocess.run(
        line, cwd=world.place, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert "threads of this process" in done.stdout


def test_what_is_no_checkpoint(world):
    with pytest.raises(lathe.LatheError) as raised:
        lathe.load(world.place / "text")
    assert not isinstance(raised.value, (FileNotFoundError, ValueError))
    assert str(raised.value) == world.says("generate", world.place / "text", "--prompt", "x")


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"max_tokens": 10**6}, "ask for less"),
        ({"max_depth": 0}, "max_depth is 0, expected at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"stop": ""}, "stop is empty"),
        ({"stop": ["a", ""]}, "stop is empty"),
        ({"regex": "("}, "--regex"),
        ({"json_schema": "{"}, "expected a JSON Schema"),
        ({"regex": "a", "choices": ["b"]}, "give one"),
        ({"regex": "a", "ignore_end": True}, "ignore_end is True"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_requests_that_make_no_sense(model, options, needle):
    for ask in [model.generate, lambda *a, **k: list(model.stream(*a, **k))]:
        with pytest.raises(ValueError, match=needle) as raised:
            ask("the model", **options)
        assert isinstance(raised.value, lathe.LatheError)


def test_prompts_that_make_no_sense(model, world):
    for ask in [model.generate, model.score, model.logits, model.hidden]:
        with pytest.raises(ValueError, match="prompt is empty"):
            ask([])
        with pytest.raises(ValueError, match="token 1 is 300, expected an id below"):
            ask([1, 300])
        for wrong in [None, 3, 1.5, [-1], [2**32], ["a"], b"abc", {"a": 1}]:
            with pytest.raises(TypeError, match="expected a text, or token ids"):
                ask(wrong)
    with pytest.raises(ValueError) as raised:
        model.generate("the model", max_tokens=1000)
    said = world.says("generate", "run", "--prompt", "the model", "--max-tokens", "1000")
    assert str(raised.value) == said
    with pytest.raises(ValueError, match="more|positions"):
        model.score([1] * 65)
    with pytest.raises(ValueError, match="max_depth"):
        model.score("the", max_depth=0)
    with pytest.raises(ValueError, match="rule is"):
        model.hidden("the", rule="other")
    for ask in [model.score, model.logits, model.hidden, model.routes]:
        with pytest.raises(ValueError, match="seed is -1"):
            ask("the", seed=-1)
        with pytest.raises(ValueError, match="max_depth is -1"):
            ask("the", max_depth=-1)
    with pytest.raises(ValueError, match="1000000000"):
        model.tokenizer.decode([10**9])
    for wrong in [[-1], b"ab", 3, ["a"]]:
        with pytest.raises(TypeError, match="expected token ids"):
            model.tokenizer.decode(wrong)
    one = model.score([5])
    assert one.logprobs.shape == (0,) and one.total == 0.0


def test_words_of_another_type(model):
    with pytest.raises(TypeError, match="temperatur"):
        model.generate("x", temperatur=1)
    with pytest.raises(TypeError, match="max_tokens is 'a'"):
        model.generate("x", max_tokens="a")
    with pytest.raises(TypeError, match="stop"):
        model.generate("x", stop=3)
    with pytest.raises(ValueError, match="weights is"):
        lathe.load("x", weights="int5")
    with pytest.raises(ValueError, match="number of threads is -1"):
        lathe.set_threads(-1)
    with pytest.raises(ValueError, match="threads of this process"):
        lathe.set_threads(1)
