"""Opening, text, generation and scores: what the command line does, from Python."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import lathe

PROMPT = "the model reads naïve 中文"


def test_it_knows_what_it_is(model, world):
    assert model.config["recursions"] == model.recursions == 3
    assert (model.config["width"], model.context, model.step) == (32, 64, 6)
    assert model.vocab_size == len(model.tokenizer) == 300
    assert str(model.path).endswith("checkpoints/step-00000006")
    assert model.parameters > 10_000 and "lathe.Model" in repr(model)
    inner = lathe.load(str(world.place / "run/checkpoints/step-00000004"))
    assert inner.step == 4


def test_text_and_ids(model):
    tokenizer = model.tokenizer
    ids = tokenizer.encode(PROMPT)
    assert tokenizer.decode(ids) == PROMPT
    assert tokenizer.token(ids[0]) is not None
    assert tokenizer.id(tokenizer.token(ids[0])) == ids[0]
    assert tokenizer.id("no such token") is None and tokenizer.token(10**6) is None
    assert tokenizer.end_ids and tokenizer.encode("", begin=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"seed": 7, "max_tokens": 20}, ["--seed", "7", "--max-tokens", "20"]),
        ({"temperature": 0, "max_depth": 1}, ["--temperature", "0", "--max-depth", "1"]),
        ({"top_k": 5, "top_p": 0.9, "min_p": 0.01},
         ["--top-k", "5", "--top-p", "0.9", "--min-p", "0.01"]),
        ({"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25},
         ["--repetition-penalty", "1.5", "--presence-penalty", "0.5",
          "--frequency-penalty", "0.25"]),
        ({"regex": "(the|of) [a-z]+\\."}, ["--regex", "(the|of) [a-z]+\\."]),
        ({"choices": ["the", "of"]}, ["--choice", "the", "--choice", "of"]),
        ({"json_schema": {"type": "integer"}}, ["--json-schema", '{"type":"integer"}']),
        ({"ignore_end": True, "max_tokens": 30}, ["--ignore-eos", "--max-tokens", "30"]),
    ],
)
def test_the_text_is_that_of_the_command_line(model, world, options, words):
    said = world.lathe("generate", "run", "--prompt", PROMPT, *words).stdout
    made = model.generate(PROMPT, **options)
    assert PROMPT + made.text + "\n" == said
    pieces = list(model.stream(PROMPT, **options))
    assert "".join(piece.text for piece in pieces) == made.text == str(made)
    tokens = [piece for piece in pieces if piece.id is not None]
    ends = [id for id in made.ids if id not in model.tokenizer.end_ids]
    assert [piece.id for piece in tokens] == ends or options.get("ignore_end")
    assert [piece.depth for piece in tokens] == made.depths[: len(tokens)]
    assert [piece.logprob for piece in tokens] == made.logprobs[: len(tokens)]


def test_stop_strings_end_the_text(model, world):
    whole = model.generate(PROMPT, max_tokens=30, seed=3).text
    stop = whole[4:7]
    made = model.generate(PROMPT, max_tokens=30, seed=3, stop=stop)
    assert (made.finish, made.stopped_by) == ("stop", stop)
    assert made.text == whole[: whole.index(stop)]
    said = world.lathe(
        "generate", "run", "--prompt", PROMPT, "--max-tokens", "30", "--seed", "3", "--stop", stop
    )
    assert said.stdout == PROMPT + made.text + "\n"
    assert "".join(str(p) for p in model.stream(PROMPT, max_tokens=30, seed=3, stop=[stop])) == (
        made.text
    )


def test_ids_are_a_prompt_too(model):
    ids = model.tokenizer.encode(PROMPT, begin=True)
    one = model.generate(PROMPT, max_tokens=8)
    assert one.prompt_ids == ids and len(one.prompt_depths) == len(ids)
    assert model.generate(ids, max_tokens=8).ids == one.ids
    assert model.generate(np.array(ids), max_tokens=8).ids == one.ids
    assert model.generate(ids, max_tokens=8, choice=1).ids != one.ids


def test_a_stream_has_its_result_and_can_be_left(model):
    stream = model.stream(PROMPT, max_tokens=12)
    assert stream.result is None
    pieces = list(stream)
    assert stream.result.text == "".join(piece.text for piece in pieces)
    assert next(stream, None) is None
    for piece in model.stream(PROMPT, max_tokens=40):
        # Other calls run while a stream waits.
        assert model.score("the model").total < 0
        break
    left = model.stream(PROMPT, max_tokens=40, ignore_end=True)
    next(left)
    left.close()
    assert len(list(left)) <= 2 and left.result.finish == "cancelled"


def test_scores_are_the_log_probabilities_of_logits(model):
    ids = model.tokenizer.encode(PROMPT, begin=True)
    scores, logits = model.score(ids), model.logits(ids)
    assert scores.ids == ids == logits.ids
    assert logits.values.shape == (len(ids), 300) and logits.values.dtype == np.float32
    assert scores.logprobs.shape == scores.depths.shape == (len(ids) - 1,)
    rows = logits.values.astype(np.float64)
    rows -= np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) + rows.max(
        1, keepdims=True
    )
    expected = rows[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-4)
    assert abs(scores.total - expected.sum()) < 1e-2
    np.testing.assert_array_equal(scores.depths, logits.depths[:-1])
    # What generation said of its own tokens is what scoring says of them.
    made = model.generate(ids, max_tokens=10)
    again = model.score(ids + made.ids)
    np.testing.assert_allclose(again.logprobs[-len(made.ids) :], made.logprobs, atol=1e-5)
    np.testing.assert_array_equal(again.depths[-len(made.ids) :], made.depths)


def test_hidden_states_own_their_memory(model):
    hidden = model.hidden(PROMPT)
    rows = len(model.tokenizer.encode(PROMPT, begin=True))
    assert hidden.states.shape == (rows, 32) and hidden.states.dtype == np.float32
    assert np.isfinite(hidden.states).all() and hidden.depths.max() <= 3
    assert hidden.states.flags.writeable and hidden.states.flags.c_contiguous
    # The memory is that of the pass: an object of Rust holds it, and no array was copied from it.
    assert type(hidden.states.base).__name__ == "PySliceContainer"
    kept = hidden.states
    del hidden
    assert np.isfinite(kept).all()
    shallow = model.hidden(PROMPT, max_depth=1)
    assert shallow.depths.max() == 1
    np.testing.assert_array_equal(shallow.depths, model.score(PROMPT, max_depth=1).depths.tolist() + [
        shallow.depths[-1]
    ])
    training = model.hidden(PROMPT, rule="training")
    assert training.states.shape == kept.shape


def test_rounded_weights_are_those_of_the_command_line(world):
    rounded = lathe.load(world.place / "run", weights="int8")
    said = world.lathe("generate", "run", "--prompt", PROMPT, "--weights", "int8").stdout
    assert PROMPT + rounded.generate(PROMPT).text + "\n" == said


def test_models_of_others_go_through_the_cache(world, tmp_path, monkeypatch):
    dense = world.place / "dense.toml"
    text = (world.place / "tiny.toml").read_text(encoding="utf-8")
    text = text.replace("recursions = 3", 'recursions = 1\nsharing = "none"')
    text = text.replace('{ kind = "expert_choice" }', '{ kind = "fixed" }')
    dense.write_text(text.replace("steps = 6", "steps = 2"), encoding="utf-8")
    world.lathe("train", "dense.toml", "--out", "dense")
    world.lathe("export", "dense", "--out", "theirs", "--format", "hf")
    world.lathe("export", "dense", "--out", "theirs.gguf")
    own = lathe.load(world.place / "dense").generate(PROMPT, temperature=0).text
    for name in ["theirs", "theirs.gguf"]:
        code = (
            f"import lathe; m = lathe.load({str(world.place / name)!r}); "
            f"print(m.generate({PROMPT!r}, temperature=0).text, end='')"
        )
        out = run_python(code, tmp_path, LATHE_CACHE=str(tmp_path))
        assert out.stdout == own, out.stderr
        assert "importing" in out.stderr
        assert "importing" not in run_python(code, tmp_path, LATHE_CACHE=str(tmp_path)).stderr
    assert len(list((tmp_path / "imports").iterdir())) == 2


def run_python(code, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        capture_output=True, text=True, encoding="utf-8", check=True, cwd=cwd,
        env={**os.environ, **environment},
    )


def test_conversations_become_prompts(world):
    model = lathe.load(world.place / "run", chat_template="chatml")
    messages = [{"role": "user", "content": "the model"}]
    text = model.tokenizer.chat_text(messages)
    assert text == "<|im_start|>user\nthe model<|im_end|>\n<|im_start|>assistant\n"
    whole = model.tokenizer.chat_text(messages, add_generation_prompt=False)
    assert whole == "<|im_start|>user\nthe model<|im_end|>\n"
    ids = model.tokenizer.chat(messages)
    start, end = (model.tokenizer.id(name) for name in ["<|im_start|>", "<|im_end|>"])
    assert [id for id in ids if id in (start, end)] == [start, end, start] and ids[0] == start
    assert model.tokenizer.decode(ids) == "user\nthe model\nassistant\n"
    # What a message spells is text, and no token of the conversation.
    spelled = [{"role": "user", "content": "<|im_end|>"}]
    assert model.tokenizer.chat(spelled).count(end) == 1
    with pytest.raises(ValueError, match="messages\\[0\\] has no text \"role\""):
        model.tokenizer.chat([{"content": "x"}])
    bare = lathe.load(world.place / "run")
    with pytest.raises(ValueError, match="has no chat template"):
        bare.tokenizer.chat(messages)


def test_threads_may_share_a_model(model):
    expected = [model.generate(PROMPT, seed=seed, max_tokens=20).ids for seed in range(6)]
    found = [None] * 6

    def make(seed):
        found[seed] = model.generate(PROMPT, seed=seed, max_tokens=20).ids

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_forked_process_computes_too(model):
    expected = model.generate(PROMPT, max_tokens=8).ids
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if model.generate(PROMPT, max_tokens=8).ids == expected else 2
        finally:
            os._exit(code)
    until = time.monotonic() + 60
    ended = (0, 0)
    while ended[0] == 0 and time.monotonic() < until:
        ended = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended[0] == child and os.waitstatus_to_exitcode(ended[1]) == 0
    assert model.generate(PROMPT, max_tokens=8).ids == expected


def test_an_answer_is_that_of_a_chat(world):
    model = lathe.load(world.place / "run", chat_template="chatml")
    line = [world.binary, "chat", "run", "--chat-template", "chatml", "--max-tokens", "12"]
    said = subprocess.run(
        line, cwd=world.place, input="the model\n", capture_output=True, check=True,
        text=True, encoding="utf-8",
    )
    ids = model.tokenizer.chat([{"role": "user", "content": "the model"}])
    assert model.generate(ids, max_tokens=12).text + "\n" == said.stdout


def test_routes_are_those_that_generation_traces(model, world, tmp_path):
    path = tmp_path / "trace.parquet"
    words = ["--max-tokens", "8", "--trace", path]
    world.lathe("generate", "run", "--prompt", PROMPT, *words)
    made = model.generate(PROMPT, max_tokens=8)
    written, found = lathe.read_trace(path), model.routes(made.prompt_ids + made.ids[:-1])
    assert len(found) == len(written) > 0 and found.sites == written.sites == {-1: 3}
    for name in ["step", "position", "token", "layer", "recursion", "targets", "target_starts",
                 "weights", "weight_starts", "dropped", "dropped_starts"]:
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name), name)
    depths = [int((found.position == row).sum()) for row in range(len(made.prompt_ids))]
    assert max(depths) <= 3 and min(depths) >= 1
