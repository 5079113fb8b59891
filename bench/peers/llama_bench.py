#!/usr/bin/env python3
"""Rates of a GGUF file in llama.cpp as a package ships it: xllamacpp, its server with parallel slots, in this process.

    llama_bench.py MODEL.gguf --batch 1,8,16,32 --context 32 --tokens 48 --prefill 512

Decoding: as many requests as --batch at once, prompts of --context random token ids, greedy, --tokens new tokens each
whatever they are. The rate is new tokens of all over the longest generation time that the server itself reports, which
begins with a request's first token: prompts are outside, sampling and the server's own work are inside, and the prompts of
requests that begin later fall into the time of those that began earlier. Prefill: prompt tokens over the prompt time that
the server reports for a fresh prompt. One round runs first and does not count; medians.

The package's Linux wheel is compiled for AVX2: `system` in the output says what it uses. For the machine's own
instructions use llama_rate, which setup builds from source and compare.py runs. This script is for a second opinion, and
for machines without a C++ compiler.
"""

import argparse
import json
import random
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", default="1,8,16,32")
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=16384, help="token ids are drawn below this")
    options = parser.parse_args()
    decode, prefill = [], []
    for batch in [int(part) for part in options.batch.split(",")]:
        server = start(options, batch, options.context + options.tokens)
        rates = [decode_round(server, options, batch, turn) for turn in range(options.rounds + 1)][1:]
        decode.append({"batch": batch, "tokens_per_second": rates, "median": statistics.median(rates)})
        del server
    if options.prefill:
        server = start(options, 1, options.prefill + 1)
        rates = [prefill_round(server, options, turn) for turn in range(options.rounds + 1)][1:]
        prefill.append({"tokens": options.prefill, "tokens_per_second": rates, "median": statistics.median(rates)})
    print(json.dumps({
        "bench": "xllamacpp", "version": xllamacpp.__version__, "system": xllamacpp.get_system_info(),
        "threads": options.threads, "decode": decode, "prefill": prefill,
    }, indent=2))


def start(options, slots, length):
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.n_parallel = slots
    params.n_ctx = slots * (-(-(length + 8) // 256) * 256)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.verbosity = -1
    return xllamacpp.Server(params)


def ask(server, prompt, tokens):
    answer = server.handle_completions({
        "prompt": prompt, "n_predict": tokens, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "cache_prompt": False, "timings_per_token": False,
    })
    if isinstance(answer, (str, bytes)):
        answer = json.loads(answer)
    if "timings" not in answer:
        sys.exit(f"an answer without timings: {json.dumps(answer)[:500]}")
    return answer["timings"]


def prompt_of(options, length, seed):
    dice = random.Random(seed)
    return [dice.randrange(3, options.vocab) for _ in range(length)]


def decode_round(server, options, batch, turn):
    prompts = [prompt_of(options, options.context, 1000 * turn + i) for i in range(batch)]
    with ThreadPoolExecutor(batch) as pool:
        timings = list(pool.map(lambda prompt: ask(server, prompt, options.tokens), prompts))
    short = [t["predicted_n"] for t in timings if t["predicted_n"] != options.tokens]
    if short:
        sys.exit(f"asked for {options.tokens} tokens, got {short[0]}")
    return sum(t["predicted_n"] for t in timings) / max(t["predicted_ms"] for t in timings) * 1e3


def prefill_round(server, options, turn):
    timings = ask(server, prompt_of(options, options.prefill, 7000 + turn), 1)
    if timings["prompt_n"] != options.prefill:
        sys.exit(f"sent {options.prefill} prompt tokens, the server counts {timings['prompt_n']}")
    return timings["prompt_n"] / timings["prompt_ms"] * 1e3


if __name__ == "__main__":
    main()
