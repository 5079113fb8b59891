#!/usr/bin/env python3
"""Use a server through the official `openai` Python client and check what it answers.

    lathe serve CHECKPOINT --port 8080 &
    python3 openai_client.py --base-url http://127.0.0.1:8080
    python3 openai_client.py --base-url http://127.0.0.1:8080 --api-key SECRET   # of a server that has this key

The client is installed in a virtual environment in --venv on the first call. Prints one line a check and exits with 1
if one of them fails. Checks use temperature 0 or a seed, so that they hold for any model whose router throws no dice.
"""

import argparse
import asyncio
import math
import os
import subprocess
import sys
import time
import traceback
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = "Once upon a time there was a small house by the river, and in it"

CHECKS = []


class Skip(Exception):
    """A check that this server gives no occasion for."""


def check(function):
    CHECKS.append(function)
    return function


class Server:
    """The client, the model's name and how to call it."""

    def __init__(self, options):
        import openai

        self.openai = openai
        self.url = options.base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self.key = options.api_key
        self.client = self.with_key(self.key or "none")
        self.model = options.model or self.client.models.list().data[0].id

    def with_key(self, key, kind=None):
        # Without retries, so that a refusal is seen as it was given.
        return (kind or self.openai.OpenAI)(api_key=key, base_url=self.url, max_retries=0, timeout=300)

    def complete(self, prompt=PROMPT, **fields):
        fields = {"max_tokens": 16, "temperature": 0} | fields
        return self.client.completions.create(model=self.model, prompt=prompt, **fields)

    def chat(self, **fields):
        messages = [
            {"role": "system", "content": "You answer in one sentence."},
            {"role": "user", "content": "Where does the sun rise?"},
        ]
        fields = {"messages": messages, "max_tokens": 16, "temperature": 0} | fields
        return self.client.chat.completions.create(model=self.model, **fields)

    def tokenize(self, text):
        """Token ids of a text, special tokens of the tokenizer included, by the endpoint beside /v1."""
        return self.helper("tokenize", {"prompt": text})["tokens"]

    def helper(self, path, body):
        return self.client.post(f"{self.url.removesuffix('/v1')}/{path}", body=body, cast_to=object)

    def refused(self, error, call, *said, **attributes):
        """Asserts that `call` ends in `error`, whose message says all of `said` and which has these attributes."""
        try:
            answer = call()
        except error as found:
            message = str(found.body["message"]) if isinstance(found.body, dict) else str(found)
            for words in said:
                assert words in message, f"the message lacks {words!r}: {message}"
            for name, value in attributes.items():
                assert getattr(found, name) == value, f"{name} is {getattr(found, name)!r}, expected {value!r}"
            return found
        raise AssertionError(f"expected {error.__name__}, got an answer: {answer}")


def text_of(answer, at=0):
    return answer.choices[at].text


@check
def models(server):
    listed = server.client.models.list()
    assert listed.object == "list" and listed.data, listed
    assert server.model in [model.id for model in listed.data]
    for model in listed.data:
        assert model.object == "model" and isinstance(model.created, int) and model.owned_by, model


@check
def completion(server):
    answer = server.complete()
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-"), answer
    assert answer.model and abs(answer.created - time.time()) < 3600, answer
    choice, usage = answer.choices[0], answer.usage
    assert len(answer.choices) == 1 and choice.index == 0 and isinstance(choice.text, str)
    assert choice.finish_reason in ("length", "stop") and choice.logprobs is None, choice
    assert usage.completion_tokens == 16 or choice.finish_reason == "stop", usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens, usage
    assert text_of(server.complete()) == choice.text, "temperature 0 gave two different texts"


@check
def token_id_prompts(server):
    ids = server.tokenize(PROMPT)
    by_ids, by_text = server.complete(ids), server.complete()
    assert text_of(by_ids) == text_of(by_text)
    assert by_ids.usage.prompt_tokens == len(ids) == by_text.usage.prompt_tokens
    several = server.complete([ids, ids[:5]])
    assert [choice.index for choice in several.choices] == [0, 1]
    assert text_of(several, 0) == text_of(by_ids), "a prompt's text depends on the prompt beside it"
    assert text_of(several, 1) == text_of(server.complete(ids[:5]))


@check
def several_prompts(server):
    prompts = [PROMPT, "The first rule is", "In winter"]
    together = server.complete(prompts)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    for at, prompt in enumerate(prompts):
        assert text_of(together, at) == text_of(server.complete(prompt)), prompt


@check
def embeddings(server):
    texts = [PROMPT, "The first rule is"]
    # The client asks for base64 and unpacks it, unless a form is named.
    packed = server.client.embeddings.create(model=server.model, input=texts)
    plain = server.client.embeddings.create(model=server.model, input=texts, encoding_format="float")
    assert [entry.index for entry in packed.data] == [0, 1] and packed.usage.total_tokens > 2, packed.usage
    for one, other in zip(packed.data, plain.data):
        assert len(one.embedding) == len(other.embedding) > 8
        assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding)) < 1e-6
        assert abs(sum(x * x for x in one.embedding) - 1) < 1e-5, "a vector is not of length 1"
    alone = server.client.embeddings.create(model=server.model, input=texts[1], encoding_format="float")
    assert alone.data[0].embedding == plain.data[1].embedding, "a vector depends on the text beside it"


def check_arrays(logprobs, length, top):
    """The four arrays of a completion's log-probabilities, of `length` entries each."""
    arrays = [logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset]
    assert [len(array) for array in arrays] == [length] * 4, [len(array) for array in arrays]
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, value, likely in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        if value is None:
            continue
        assert math.isfinite(value) and value <= 1e-6, value
        assert 1 <= len(likely) <= top + 1, likely
        # Two tokens may be spelt the same; the map keeps the higher value then.
        assert likely.get(token, -math.inf) >= value, (token, value, likely)


@check
def generated_logprobs(server):
    answer = server.complete(logprobs=3)
    logprobs = answer.choices[0].logprobs
    check_arrays(logprobs, answer.usage.completion_tokens, 3)
    for value, likely in zip(logprobs.token_logprobs, logprobs.top_logprobs):
        assert value == max(likely.values()), "the token of temperature 0 is not the most likely one"
    assert text_of(answer) == text_of(server.complete())


@check
def echo_with_logprobs(server):
    ids = server.tokenize(PROMPT)
    answer = server.complete(ids, echo=True, logprobs=1, max_tokens=1)
    choice = answer.choices[0]
    check_arrays(choice.logprobs, len(ids) + 1, 1)
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    assert all(value is not None for value in choice.logprobs.token_logprobs[1:])
    assert choice.text.startswith(PROMPT), choice.text
    assert choice.logprobs.text_offset[0] == 0
    alone = server.complete(ids, echo=True, logprobs=1, max_tokens=0)
    check_arrays(alone.choices[0].logprobs, len(ids), 1)
    assert alone.usage.completion_tokens == 0 and text_of(alone) == PROMPT
    assert alone.choices[0].logprobs.token_logprobs == choice.logprobs.token_logprobs[:-1]
    again = server.complete([ids[:4], ids], echo=True, logprobs=1, max_tokens=1)
    assert again.choices[1].logprobs.token_logprobs == choice.logprobs.token_logprobs, "scores depend on the batch"


@check
def scores_of_the_prompt_are_those_of_generation(server):
    made = server.complete(logprobs=1, max_tokens=8, extra_body={"return_token_ids": True})
    choice = made.choices[0]
    new = getattr(choice, "token_ids", None)
    if not new:
        raise Skip("the server returns no token ids")
    ids = server.tokenize(PROMPT)
    scored = server.complete(ids + new, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
    for ours, theirs in zip(choice.logprobs.token_logprobs, scored.token_logprobs[len(ids) :], strict=True):
        assert abs(ours - theirs) <= 1e-5, (ours, theirs)


@check
def several_samples(server):
    fields = {"n": 3, "temperature": 1.0, "seed": 7}
    first, second = server.complete(**fields), server.complete(**fields)
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert [c.text for c in first.choices] == [c.text for c in second.choices], "one seed gave different texts"
    alone = server.complete(temperature=1.0, seed=7)
    assert text_of(alone) == text_of(first), "the first sample depends on how many there are"


@check
def seeds(server):
    texts = [text_of(server.complete(temperature=1.0, seed=seed, max_tokens=24)) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1], "one seed gave two texts"
    assert len(set(texts)) > 1, "three seeds gave one text"


@check
def stop_strings(server):
    whole = text_of(server.complete(max_tokens=24))
    if len(whole) < 8:
        raise Skip(f"the model says too little: {whole!r}")
    stop = whole[len(whole) // 2 :][:3]
    answer = server.complete(max_tokens=24, stop=["never to be seen \x01", stop])
    assert text_of(answer) == whole[: whole.index(stop)], (whole, stop, text_of(answer))
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(text_of(chunk) for chunk in server.complete(max_tokens=24, stop=stop, stream=True))
    assert streamed == text_of(answer), "a stream shows the beginning of a stop string"


def check_stream(chunks):
    """What holds for the chunks of every stream: returns those with a choice, and the usage."""
    chunks = list(chunks)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage is not None, "the last chunk has no usage"
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason in ("length", "stop")
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-2])
    return chunks[:-1], chunks[-1].usage


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


@check
def streaming(server):
    for fields in ({"max_tokens": 40}, {"max_tokens": 40, "echo": True}):
        whole = server.complete(**fields)
        chunks, usage = check_stream(server.complete(**fields, **STREAM))
        assert "".join(text_of(chunk) for chunk in chunks) == text_of(whole)
        assert usage.completion_tokens == whole.usage.completion_tokens
        assert usage.prompt_tokens == whole.usage.prompt_tokens


@check
def streaming_logprobs(server):
    whole = server.complete(logprobs=2).choices[0].logprobs
    chunks, _ = check_stream(server.complete(logprobs=2, **STREAM))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        together = [entry for part in parts for entry in getattr(part, name)]
        assert together == getattr(whole, name), name


@check
def streams_that_are_left(server):
    stream = server.complete(max_tokens=64, stream=True)
    next(iter(stream))
    stream.close()
    assert text_of(server.complete()) is not None, "the server does not answer after a stream was left"


@check
def side_by_side(server):
    prompts = [PROMPT, "The first rule is", "In winter", "A list of", "He said", "On the last day"]
    alone = [text_of(server.complete(prompt)) for prompt in prompts]

    async def ask(client, prompt):
        answer = await client.completions.create(model=server.model, prompt=prompt, max_tokens=16, temperature=0)
        return text_of(answer)

    async def all_at_once():
        async with server.with_key(server.key or "none", server.openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

    assert asyncio.run(all_at_once()) == alone, "a text depends on the requests beside it"


@check
def chat(server):
    try:
        answer = server.chat(logprobs=True, top_logprobs=2)
    except server.openai.BadRequestError as error:
        assert "template" in str(error.body["message"]), error
        assert error.body["type"] == "invalid_request_error", error
        return "no chat template: 400 that says so"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-"), answer
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("length", "stop")
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) <= 2 and entry.logprob == entry.top_logprobs[0].logprob
        assert entry.bytes is None or bytes(entry.bytes).decode("utf-8", "replace") is not None
    chunks, usage = check_stream(server.chat(**STREAM))
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == choice.message.content
    assert usage.completion_tokens == answer.usage.completion_tokens
    return f"the model says {choice.message.content[:40]!r}"


@check
def responses(server):
    """The Responses API: whole, as events, and as a second turn, beside the same chat."""
    fields = {"model": server.model, "input": "Hello", "temperature": 0, "max_output_tokens": 12}
    try:
        whole = server.client.responses.create(**fields)
    except server.openai.BadRequestError as error:
        assert "template" in str(error.body["message"]), error
        raise Skip("no chat template") from None
    chat = server.client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": "Hello"}], temperature=0, max_tokens=12
    )
    assert whole.output_text == chat.choices[0].message.content, whole
    assert whole.status in ("completed", "incomplete") and whole.usage.output_tokens <= 12, whole
    events = list(server.client.responses.create(stream=True, **fields))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text, deltas
    assert events[-1].type == f"response.{whole.status}", events[-1]
    turns = [{"role": "user", "content": "Hello"}, *whole.output, {"role": "user", "content": "And?"}]
    second = server.client.responses.create(**(fields | {"input": turns}))
    assert second.usage.input_tokens > whole.usage.input_tokens, second


@check
def unknown_model(server):
    call = lambda: server.client.completions.create(model="no-such-model", prompt="x", max_tokens=1)  # noqa: E731
    error = server.refused(server.openai.NotFoundError, call, "no-such-model", status_code=404)
    assert error.body["code"] == "model_not_found", error.body


@check
def bad_fields(server):
    cases = [
        ("temperature", {"temperature": -1}),
        ("top_p", {"top_p": 1.5}),
        ("n", {"n": 0}),
        ("max_tokens", {"max_tokens": -1}),
        ("logprobs", {"logprobs": 1000}),
        ("presence_penalty", {"presence_penalty": 3}),
        ("stop", {"stop": ["x"] * 100}),
        ("prompt", {"prompt": [4_000_000_000]}),
        ("prompt", {"prompt": [[1], "x"]}),
        ("logit_bias", {"logit_bias": {"1": 1000}}),
    ]
    for name, fields in cases:
        call = lambda fields=fields: server.complete(**fields)  # noqa: E731
        error = server.refused(server.openai.BadRequestError, call, name, status_code=400)
        assert error.body["type"] == "invalid_request_error" and error.body["param"], (name, error.body)
    return f"{len(cases)} refused, each by its name"


@check
def too_long(server):
    call = lambda: server.complete(max_tokens=100_000_000)  # noqa: E731
    error = server.refused(server.openai.BadRequestError, call, "100000000", status_code=400)
    assert any(c.isdigit() for c in error.body["message"].replace("100000000", "")), "the limit is not named"


@check
def wrong_key(server):
    if not server.key:
        raise Skip("no --api-key was given")
    other_end = "b" if server.key.endswith("a") else "a"
    for key in ("wrong", server.key + "x", server.key[:-1] + other_end):
        client = server.with_key(key)
        error = server.refused(server.openai.AuthenticationError, client.models.list, status_code=401)
        assert error.body["type"] == "authentication_error", error.body
        assert server.key not in str(error.body), "the refusal tells the key"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="the server, with or without /v1")
    parser.add_argument("--api-key", help="key of a server that asks for one; without it the key is not checked")
    parser.add_argument("--model", help="name of the model (the first that is listed)")
    parser.add_argument("--only", help="names of checks, with commas (all)")
    parser.add_argument("--venv", type=Path, default=HERE / "work" / "venv", help="virtual environment of the client")
    parser.add_argument("--prepare-only", action="store_true", help="make the virtual environment and stop")
    options = parser.parse_args()
    if not options.prepare_only and not options.base_url:
        parser.error("--base-url is needed")
    enter(options.venv.resolve())
    if options.prepare_only:
        return
    wanted = options.only.split(",") if options.only else [function.__name__ for function in CHECKS]
    unknown = set(wanted) - {function.__name__ for function in CHECKS}
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))} is no check")

    server = Server(options)
    print(f"openai {server.openai.__version__} with {server.model} at {server.url}")
    results = [run(function, server) for function in CHECKS if function.__name__ in wanted]
    print(f"{results.count('ok')} passed, {results.count('FAILED')} failed, {results.count('skipped')} skipped")
    if "FAILED" in results or "ok" not in results:
        sys.exit(1)


def run(function, server):
    """Run one check and print how it ended."""
    started = time.time()
    try:
        result, words = "ok", function(server) or ""
    except Skip as reason:
        result, words = "skipped", str(reason)
    except Exception as error:
        result, words = "FAILED", f"{type(error).__name__}: {error}"
        line = traceback.extract_tb(error.__traceback__)[1].lineno
        words = f"line {line}: {words}"
    print(f"{result:8} {function.__name__:48} {time.time() - started:6.2f} s  {words[:300]}", flush=True)
    return result


def enter(folder):
    """Run this script again with the Python of the virtual environment, which is made if it is not there."""
    if Path(sys.prefix).resolve() == folder:
        return
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists() or subprocess.run([python, "-c", "import openai"], capture_output=True).returncode != 0:
        print(f"installing openai in {folder}")
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "openai"], check=True)
    sys.exit(subprocess.run([python, *sys.argv]).returncode)


if __name__ == "__main__":
    main()
