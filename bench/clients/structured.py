#!/usr/bin/env python3
"""Ask a server for answers of a given form through the clients that people use for it.

    lathe serve CHECKPOINT --port 8080 &
    python3 structured.py --base-url http://127.0.0.1:8080

`openai` (its `parse`), `instructor` (JSON_SCHEMA) and `langchain-openai` (`json_schema`) each make a typed object of the
same sentence, and fail where the answer does not fit the type. They are installed in a virtual environment in --venv on
the first call. The checks hold for any model with a chat template; what the objects say is printed, not checked.
Prints one line a client and exits with 1 if one of them fails.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ["openai==1.109.1", "instructor==1.3.2", "langchain-openai==1.1.9"]
SENTENCE = "John Smith is 42 years old and likes green."


def installed(where):
    """The Python of a virtual environment that has the clients."""
    python = where / "bin" / "python"
    if not python.exists():
        venv.create(where, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def ask(base):
    """Every client, and what became of its question."""
    from typing import Literal

    import instructor
    import openai
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        name: str = Field(max_length=20)
        age: int = Field(ge=0, le=120)
        colour: Literal["red", "green"]

    client = openai.OpenAI(base_url=base)
    question = [{"role": "user", "content": SENTENCE}]

    def parse():
        answer = client.beta.chat.completions.parse(
            model="", messages=question, response_format=Person, max_tokens=200
        )
        return answer.choices[0].message.parsed

    def instructed():
        made = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
        return made.chat.completions.create(
            model="", messages=question, response_model=Person, max_tokens=200, max_retries=0
        )

    def chained():
        chain = ChatOpenAI(base_url=base, model="", max_tokens=200)
        return chain.with_structured_output(Person, method="json_schema").invoke(SENTENCE)

    failed = 0
    for name, call in [("openai", parse), ("instructor", instructed), ("langchain", chained)]:
        try:
            answer = call()
            if not isinstance(answer, Person):
                raise TypeError(f"{answer!r} is no Person")
            print(f"ok    {name}: {answer!r}")
        except Exception as error:  # Whatever a client raises is its failure.
            print(f"FAIL  {name}: {type(error).__name__}: {str(error)[:300]}")
            failed = 1
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="of the server, without /v1")
    parser.add_argument("--venv", type=Path, default=HERE / "work" / "structured")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        os.environ.setdefault("OPENAI_API_KEY", "none")
        sys.exit(ask(options.base_url.rstrip("/") + "/v1"))
    again = [__file__, "--inside", "--base-url", options.base_url]
    sys.exit(subprocess.run([installed(options.venv), *again]).returncode)


if __name__ == "__main__":
    main()
