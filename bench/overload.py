#!/usr/bin/env python3
"""Overload: what a server does with twice and five times the requests that it can answer.

    overload.py --lathe target/release/lathe CHECKPOINT [--requests 400] [--json FILE] [-- FLAGS OF lathe bench serve]

Capacity is the rate of a closed loop, measured before and after each overload, because machines vary. Then requests come
at random times at a multiple of it, whether or not earlier ones are done. Each accepted request has to end with a complete
answer (`lathe bench serve` checks every token count and fails otherwise), the others with 429 and Retry-After; goodput is
the new tokens a second of complete answers against those of the closed loop. Exits with 1 if it is below --least.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main():
    options = arguments()
    common = ["--prompt-tokens", "16-64", "--output-tokens", "16-64", "--ignore-eos", *options.flags]

    def bench(*load, requests):
        command = [options.lathe, "bench", "serve", options.checkpoint, "--json", "--requests", str(requests), *load, *common]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}{done.stdout[-2000:]}")
        return json.loads(done.stdout)

    def closed():
        return bench("--concurrency", str(options.concurrency), requests=options.requests)

    rows, before = [], closed()
    for times in options.times:
        capacity = before["requests_per_second"]
        found = bench("--rate", f"{times * capacity:.3f}", requests=int(options.requests * times))
        after = closed()
        tokens = statistics.mean([before["output_tokens_per_second"], after["output_tokens_per_second"]])
        rows.append({
            "times_capacity": times,
            "capacity_requests_per_second": [before["requests_per_second"], after["requests_per_second"]],
            "requests": found["requests"],
            "complete": found["good"],
            "shed_429": found["shed"],
            "wrong": found["wrong"],
            "seconds": found["seconds"],
            "goodput": found["output_tokens_per_second"] / tokens,
            "ttft_ms": found["ttft_ms"],
            "tpot_ms": found["tpot_ms"],
        })
        before = after
    for row in rows:
        capacity = " and ".join(f"{c:.1f}" for c in row["capacity_requests_per_second"])
        print(
            f"{row['times_capacity']:g}x of {capacity} requests/s: {row['complete']} of {row['requests']} complete, "
            f"{row['shed_429']} shed, {len(row['wrong'])} wrong, goodput {row['goodput']:.2f} of the closed loop's"
        )
    if options.json:
        options.json.write_text(json.dumps({"concurrency": options.concurrency, "rows": rows}, indent=2) + "\n")
    sys.exit(any(row["goodput"] < options.least or row["wrong"] for row in rows))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint, folder of a run, preset or recipe")
    parser.add_argument("flags", nargs="*", help="passed on to lathe bench serve")
    parser.add_argument("--lathe", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=400, help="of the closed loop; overloads take as many times more")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--times", type=float, nargs="+", default=[2, 5])
    parser.add_argument("--least", type=float, default=0.9)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
