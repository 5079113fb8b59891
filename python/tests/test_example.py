"""The example runs as it stands, and the types name what there is."""

import ast
import inspect
import os
import pathlib
import subprocess
import sys

import pytest

import lathe

HERE = pathlib.Path(lathe.__file__).parent


def test_the_first_hour(world, tmp_path):
    example = pathlib.Path(__file__).parents[1] / "examples/first_hour.py"
    path = os.pathsep.join([str(world.binary.parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, example, world.place / "text", tmp_path / "hour", "6"],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "goes on from step 2" in done.stdout and "recursion 0:" in done.stdout


def stub():
    return ast.parse((HERE / "__init__.pyi").read_text(encoding="utf-8"))


def test_the_types_name_every_option(model):
    with pytest.raises(TypeError) as raised:
        model.generate("x", zzz=1)
    known = str(raised.value).split("expected one of ")[1].split(", ")
    methods = {
        node.name: [word.arg for word in node.args.kwonlyargs]
        for kind in stub().body if isinstance(kind, ast.ClassDef) and kind.name == "Model"
        for node in kind.body if isinstance(node, ast.FunctionDef)
    }
    assert methods["generate"] == methods["stream"] == known
    for name in ["score", "logits", "hidden", "routes"]:
        real = inspect.signature(getattr(lathe.Model, name)).parameters.values()
        assert methods[name] == [word.name for word in real if word.kind == word.KEYWORD_ONLY]


def test_the_types_name_what_there_is():
    assert (HERE / "py.typed").is_file()
    tree = stub()
    typed = {
        node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    public = set(lathe.__all__) - {"__version__"}
    assert public == set(typed)
    for name in public:
        thing = getattr(lathe, name)
        assert inspect.getdoc(thing), name
        if not isinstance(typed[name], ast.ClassDef):
            continue
        members = set()
        for node in typed[name].body:
            if isinstance(node, ast.FunctionDef):
                members.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                members.add(node.target.id)
        real = {
            member for member in vars(thing)
            if not member.startswith("_") or member in {"__len__", "__iter__", "__next__"}
        }
        if name == "RunLog":
            real |= {"path", "rows"}
        assert members - {"__enter__", "__exit__", "__init__"} == real, name
        for member in real - {"path", "rows"}:
            if not member.startswith("__"):
                assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"
