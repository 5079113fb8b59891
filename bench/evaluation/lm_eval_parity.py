#!/usr/bin/env python3
"""Compare `lathe eval` with lm-evaluation-harness, item by item.

    lathe eval CHECKPOINT --tasks tasks --items items.jsonl
    lathe serve CHECKPOINT --port 8080 &
    python3 lm_eval_parity.py --tasks tasks --items items.jsonl --base-url http://127.0.0.1:8080 --model NAME --context 512

Runs `lm_eval --model local-completions` of lm-eval 0.4.13, without network, against the server and compares what it
logs with the records that `lathe eval` wrote. Both have to predict the same choice for every item, count it the same in
every metric, and agree on each log-likelihood to --tolerance. Prints a table; exits with 1 on any disagreement.

With --folder, which `lathe export --format hf` made of the checkpoint, lm-eval runs the model itself by
`--model hf` (transformers and PyTorch) and needs no server.

The tokenizer is asked from the server (/tokenizer_info, /tokenize), or read from a folder with --tokenizer, which must
hold tokenizer.json and tokenizer_config.json. --context is the model's context, and `lathe eval` must have run with the
same one. The first call makes a virtual environment of about 0.9 GB in --venv.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

from lm_eval_yaml import translate_folder

HERE = Path(__file__).resolve().parent
REQUIREMENTS = ["lm-eval[api]==0.4.13", "transformers"]


def main():
    options = arguments()
    work = options.work.resolve()
    programs = prepare(options.venv.resolve(), options.folder is not None)
    if options.prepare_only:
        return
    names = translate_folder(options.tasks, fresh(work / "yaml"))
    if options.reuse:
        samples = work / "samples"
    else:
        samples = fresh(work / "samples")
        run_lm_eval(options, programs, names, work, samples)
    theirs = {name: read_samples(samples, name) for name in names}
    ours = read_records(options.items)
    tables = [compare(name, ours.get(name, []), theirs[name], options) for name in names]
    for name in sorted(set(ours) - set(names)):
        print(f"{name}: in {options.items}, and no task of {options.tasks}", file=sys.stderr)
    print_table(tables)
    wrong = [line for table in tables for line in table["wrong"]]
    for line in wrong[: options.show]:
        print(line)
    if len(wrong) > options.show:
        print(f"... and {len(wrong) - options.show} more")
    if wrong:
        sys.exit(1)
    print(f"agreed: {sum(t['items'] for t in tables)} items of {len(tables)} tasks")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, help="folder of tasks, as given to lathe eval")
    parser.add_argument("--items", type=Path, help="records that lathe eval wrote")
    parser.add_argument("--base-url", help="the server, without a path")
    parser.add_argument("--folder", type=Path, help="exported folder that lm-eval runs by itself")
    parser.add_argument("--model", help="name of the model; by default the first that the server lists")
    parser.add_argument("--context", type=int, default=2048, help="context of the model, in tokens (2048)")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer files, instead of the server's endpoints")
    parser.add_argument("--venv", type=Path, default=HERE / "work" / "venv", help="virtual environment of lm-eval")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for its files")
    parser.add_argument("--concurrent", type=int, default=1, help="requests at the same time (1)")
    parser.add_argument("--batch", type=int, default=1, help="prompts in a request (1)")
    parser.add_argument("--text", action="store_true", help="send text instead of token ids")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of a log-likelihood, absolute (1e-4)")
    parser.add_argument("--show", type=int, default=20, help="disagreements to print (20)")
    parser.add_argument("--reuse", action="store_true", help="compare with the samples of the last run")
    parser.add_argument("--prepare-only", action="store_true", help="make the virtual environment and stop")
    options = parser.parse_args()
    if not options.prepare_only:
        alone = options.reuse or options.folder
        for name in ["tasks", "items"] + ([] if alone else ["base_url"]):
            if getattr(options, name) is None:
                parser.error(f"--{name.replace('_', '-')} is needed")
    return options


def prepare(folder, with_torch):
    """The folder of programs of the virtual environment, made if it is not there."""
    requirements = REQUIREMENTS + (["torch", "accelerate"] if with_torch else [])
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    if not (programs / "lm_eval").exists():
        print(f"installing {' '.join(requirements)} in {folder}")
        venv.create(folder, with_pip=True)
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *requirements], check=True)
    return programs


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def run_lm_eval(options, programs, names, work, samples):
    """Let lm-eval score the tasks by the server's completions endpoint, or by a folder's own code."""
    if options.folder:
        model, model_args = "hf", {
            "pretrained": str(options.folder.resolve()),
            "trust_remote_code": True,
            "dtype": "float32",
            "max_length": options.context,
        }
    else:
        base = options.base_url.rstrip("/")
        model, model_args = "local-completions", {
            "model": options.model or first_model(base),
            "base_url": f"{base}/v1/completions",
            "max_length": options.context,
            "num_concurrent": options.concurrent,
            "tokenized_requests": not options.text,
            "tokenizer_backend": "huggingface" if options.tokenizer else "remote",
        }
        if options.tokenizer:
            model_args["tokenizer"] = str(options.tokenizer.resolve())
            # `lathe eval` puts the begin of text where the tokenizer does, as lm-eval's own models do.
            names = json.loads((options.tokenizer / "tokenizer_config.json").read_text())
            model_args["add_bos_token"] = bool(names.get("add_bos_token"))
    environment = dict(os.environ)
    environment.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HOME=str(work / "cache"),
        HF_DATASETS_CACHE=str(fresh(work / "cache" / "datasets")),
        TOKENIZERS_PARALLELISM="false",
        # Proxies are for elsewhere: the server is on this machine, or named as it is.
        NO_PROXY="*",
    )
    command = [
        programs / "lm_eval",
        *("--model", model),
        *(("--device", "cpu") if options.folder else ()),
        *("--model_args", json.dumps(model_args)),
        *("--include_path", work / "yaml"),
        *("--tasks", ",".join(names)),
        *("--batch_size", str(options.batch)),
        *("--output_path", samples),
        "--log_samples",
    ]
    log = work / "lm_eval.log"
    print(f"lm-eval on {len(names)} tasks; its words go to {log}")
    with log.open("w") as out:
        status = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT).returncode
    if status != 0:
        tail = log.read_text(errors="replace").splitlines()[-25:]
        sys.exit("\n".join([*tail, f"lm_eval ended with {status}; all of it is in {log}"]))


def first_model(base):
    request = urllib.request.Request(f"{base}/v1/models")
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"][0]["id"]


def read_samples(folder, name):
    """What lm-eval logged for a task, in the order of its items."""
    files = sorted(folder.rglob(f"samples_{name}_*.jsonl"))
    # A name may be the beginning of another one's; what follows here is a time alone.
    files = [file for file in files if file.stem.removeprefix(f"samples_{name}_")[:2].isdigit()]
    if len(files) != 1:
        sys.exit(f"expected one file of samples of {name} under {folder}, found {len(files)}")
    with files[0].open(encoding="utf-8") as lines:
        samples = [json.loads(line) for line in lines]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def read_records(path):
    """The records of lathe eval, by task."""
    records = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            records.setdefault(record["task"], []).append(record)
    for task in records.values():
        task.sort(key=lambda record: record["item"])
    return records


def compare(name, ours, theirs, options):
    """Counts and differences of one task."""
    table = {"task": name, "items": len(theirs), "predictions": None, "greedy": None, "largest": 0.0, "wrong": []}

    def wrong(item, what, we, they):
        table["wrong"].append(f"{name}, item {item}: {what}: lathe {we}, lm-eval {they}")

    if len(ours) != len(theirs):
        wrong("all", "number of items", len(ours), len(theirs))
    for record, sample in zip(ours, theirs):
        item = record["item"]
        sums, greedy = answers_of(sample)
        if item != sample["doc_id"] or len(sums) != len(record["log_likelihoods"]):
            wrong(item, "choices", len(record["log_likelihoods"]), f"{len(sums)} of item {sample['doc_id']}")
            continue
        differences = [abs(we - they) for we, they in zip(record["log_likelihoods"], sums)]
        table["largest"] = max(table["largest"], *differences)
        if not max(differences) <= options.tolerance:
            wrong(item, "log-likelihoods", record["log_likelihoods"], sums)
        if greedy is not None:
            table["greedy"] = (table["greedy"] or 0) + (greedy == record["greedy"])
            if greedy != record["greedy"]:
                wrong(item, "greedy", record["greedy"], greedy)
        if record["prediction"] is not None:
            highest = sums.index(max(sums))
            table["predictions"] = (table["predictions"] or 0) + (record["prediction"] == highest)
            if record["prediction"] != highest:
                wrong(item, "prediction", record["prediction"], highest)
        for metric, we in record["metrics"].items():
            they = metric_of(sample, metric)
            if not close(we, they, 1.0 if metric.startswith("acc") else options.tolerance):
                wrong(item, metric, we, they)
    table["means"] = {m: mean(record["metrics"][m] for record in ours) for m in (ours[0]["metrics"] if ours else {})}
    return table


def answers_of(sample):
    """Log-likelihoods and greedy flags of one logged item; a document has no flag."""
    answers = sample["filtered_resps"]
    if isinstance(answers[0], list):
        return [float(value) for value, _ in answers], [str(flag) == "True" for _, flag in answers]
    return [float(value) for value in answers], None


def metric_of(sample, metric):
    """One metric of one logged item alone: lm-eval keeps sums and weights where it takes exponentials of means."""
    value = sample[metric]
    if metric == "perplexity":
        return exponential(-float(value))
    if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        total, weight = (float(part) for part in value)
        return -total / weight / math.log(2) if metric == "bits_per_byte" else exponential(-total / weight)
    return float(value)


def exponential(value):
    return math.exp(value) if value < 709 else None


def close(we, they, tolerance):
    """Right or wrong has to be the same; other metrics are close in relation to their size."""
    if we is None or they is None:
        return we is they
    return we == they if tolerance == 1.0 else abs(we - they) <= tolerance * max(1.0, abs(they))


def mean(values):
    values = list(values)
    return sum(values) / len(values) if all(value is not None for value in values) else None


def print_table(tables):
    print(f"\n{'task':44} {'items':>6} {'same choice':>11} {'same greedy':>11} {'largest difference':>18}  accuracies")
    for table in tables:
        shown = {name: value for name, value in table.get("means", {}).items() if name.startswith("acc")}
        accuracies = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        counts = ["-" if table[name] is None else table[name] for name in ("predictions", "greedy")]
        row = [table["items"], *counts, table["largest"]]
        print("{:44} {:6} {:>11} {:>11} {:18.3g}  {}".format(table["task"], *row, accuracies))
    print()


if __name__ == "__main__":
    main()
