#!/usr/bin/env python3
"""Translate task folders of `lathe eval` into task files of lm-evaluation-harness 0.4.13.

    python3 lm_eval_yaml.py TASKS OUT

Writes OUT/NAME.yaml for each TASKS/*.toml, reading the same items. YAML includes JSON, so JSON is what is written.
"""

import json
import re
import sys
import tomllib
from pathlib import Path


def translate_folder(tasks, out):
    """Write a YAML file for each task; returns their names."""
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for path in sorted(tasks.glob("*.toml")):
        config = translate(path)
        # In a file called as the task, whatever the task is called: the name may hold any character.
        (out / f"{path.stem}.yaml").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        names.append(config["task"])
    if not names:
        sys.exit(f"{tasks} has no task files, which end in .toml")
    return names


def translate(path):
    """The configuration of one task."""
    task = tomllib.loads(path.read_text(encoding="utf-8"))
    files = {"test": str((path.parent / task.get("items", f"{path.stem}.jsonl")).resolve())}
    config = {
        "task": task.get("name", path.stem),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "target_delimiter": task.get("delimiter", " "),
    }
    config.update(KINDS[task["kind"]](task))
    if task.get("shots", 0):
        files["shots"] = str((path.parent / task["shots_from"]).resolve())
        config.update(
            num_fewshot=task["shots"],
            fewshot_split="shots",
            fewshot_config={"sampler": "first_n"},
            fewshot_delimiter=task.get("shots_between", "\n\n"),
        )
    return config


def multiple_choice(task):
    choices = task["choices"]
    return {
        "output_type": "multiple_choice",
        "doc_to_text": jinja(task["context"]),
        # A bare name is looked up in the item, and not rendered.
        "doc_to_choice": only_field(choices) if isinstance(choices, str) else jinja_list(choices),
        "doc_to_target": only_field(task["answer"]),
        "metric_list": metrics("acc", "acc_norm", "acc_bytes"),
    }


def pairs(task):
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": jinja_list([task["good"], task["bad"]]),
        "doc_to_target": 0,
        "metric_list": metrics("acc"),
    }


def rolling(task):
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": jinja(task["text"]),
        "metric_list": metrics("word_perplexity", "byte_perplexity", "bits_per_byte"),
    }


def last_word(task):
    text = expression(task["text"])
    return {
        "output_type": "loglikelihood",
        "doc_to_text": "{{ %s.rsplit(' ', 1)[0] }}" % text,
        "doc_to_target": "{{ ' ' ~ %s.rsplit(' ', 1)[1] }}" % text,
        "metric_list": metrics("acc", "perplexity"),
    }


def varying_context(task):
    return {
        "output_type": "multiple_choice",
        # A context that is a whole number is the place of the right one among the choices, which are contexts then.
        "doc_to_text": only_field(task["answer"]),
        "doc_to_choice": jinja_list(task["contexts"]),
        "doc_to_target": jinja(task["continuation"]),
        "metric_list": metrics("acc"),
    }


KINDS = {
    "multiple_choice": multiple_choice,
    "pairs": pairs,
    "rolling": rolling,
    "last_word": last_word,
    "varying_context": varying_context,
}


def metrics(*names):
    return [{"metric": name} for name in names]


def pieces(template):
    """Texts and fields of a template, as (is a field, text) pairs."""
    found = []
    for part in re.findall(r"\{\{|\}\}|\{[A-Za-z0-9_-]+\}|[^{}]+|[{}]", template):
        if part in ("{", "}"):
            sys.exit(f"template {template!r}: a lone {part}")
        if part in ("{{", "}}"):
            found.append((False, part[0]))
        elif part[0] == "{":
            if not part[1:-1].isidentifier():
                sys.exit(f"template {template!r}: lm-evaluation-harness cannot read a field called {part[1:-1]}")
            found.append((True, part[1:-1]))
        else:
            found.append((False, part))
    return found


def expression(template):
    """A template as one Jinja expression of a string."""
    parts = [name if field else literal(name) for field, name in pieces(template)]
    # The empty string in front makes a string of a lone number.
    return "(" + " ~ ".join(["''", *parts]) + ")"


def literal(text):
    """A Jinja string. Jinja reads Python's escapes; braces, # and % are escaped too, so that none can pass for a mark."""
    escaped = "".join(f"\\x{ord(c):02x}" if c in "{}%#'\\" else c for c in text)
    return "'" + escaped.replace("\n", "\\n").replace("\r", "\\r") + "'"


def jinja(template):
    return "{{ %s }}" % expression(template) if template else ""


def jinja_list(templates):
    return "{{ [%s] }}" % ", ".join(expression(template) for template in templates)


def only_field(template):
    found = pieces(template)
    if len(found) != 1 or not found[0][0]:
        sys.exit(f"template {template!r}: expected one field and nothing else")
    return found[0][1]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for name in translate_folder(Path(sys.argv[1]), Path(sys.argv[2])):
        print(name)
