"""The house: which file may import what, what no file may do, and what `--help` may cost."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {"study": 0, "models": 1, "privacy": 2, "unlearning": 3, "client": 4, "server": 4}
LAYERS |= {"demo": 5, "cli": 6}
FLOWER = {"client/courier.py", "study/wire.py"}
FLOWER |= {f"server/{name}.py" for name in ("app", "exchange", "control", "gate")}
BANNED_IMPORTS = ("pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "runpy")
BANNED_IMPORTS += ("importlib.import_module", "importlib.util", "monai.fl", "monai.bundle")
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.hub.load"}
BANNED_CALLS |= {"importlib.import_module"}
HEAVY = ("torch", "monai", "numpy", "scipy", "matplotlib", "nibabel", "flwr", "dp_accounting")
MOST_LINES = 350
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


PACKAGE = sorted([*ROOT.glob("*.py"), *_sources(*(set(LAYERS) - {"cli"}))])
EVERYTHING = [*PACKAGE, *_sources("tests", "benchmarks", "examples", "deploy")]


def _imports(file: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (dots, module) of each import; "from x import y" also as x.y, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
            for name in node.names:
                yield node.level, f"{node.module}.{name.name}" if node.module else name.name


def _called(node: ast.Call) -> str:
    """Return the dotted name that is called, e.g. "torch.load"."""
    return ast.unparse(node.func)


def faults(file: str, source: str) -> list[str]:
    """Return what a package file does that the house forbids.

    Args:
        file: its path below the root, e.g. "client/worker.py".
        source: its text.
    """
    found = []
    tree = ast.parse(source)
    place = file.removesuffix(".py").split("/")
    for level, module in _imports(file, tree):
        if level:
            if level > len(place):
                found.append(f"climbs out of the package to {module}")
            target = [*place[: len(place) - level], *module.split(".")][0]
            found.extend(_climbs(place[0], target))
        elif module.split(".")[0] == "voxfed":
            found.append(f"imports {module} absolutely")
        elif module.split(".")[0] == "flwr" and file not in FLOWER:
            found.append(f"imports {module}")
        if not level and any(f"{module}.".startswith(f"{bad}.") for bad in BANNED_IMPORTS):
            found.append(f"imports {module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in BANNED_CALLS:
            found.append(f"calls {_called(node)}")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("has an except without a name")
    return found


def _climbs(here: str, target: str) -> list[str]:
    if here == target or target not in LAYERS:
        return []  # its own folder, or the root's version
    if here not in LAYERS:
        return [f"the root's {here} imports {target}"]
    return [f"{here} imports {target}"] if LAYERS[target] >= LAYERS[here] else []


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_house_rules(path: Path) -> None:
    """Imports go down only and relatively, Flower stays in its files, nothing runs a string."""
    assert faults(path.relative_to(ROOT).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("study/plan.py", "from ..models.vae import Vae"),
        ("study/plan.py", "from .. import models"),
        ("client/site.py", "from ..server import store"),
        ("server/store.py", "def f():\n    from ..client.site import Site"),
        ("privacy/audit/report.py", "from ...client import site"),
        ("client/site.py", "from ..demo import federation"),
        ("demo/federation.py", "from ..cli import app"),
        ("client/site.py", "import voxfed.study.plan"),
        ("client/site.py", "from voxfed.study.plan import StudyPlan"),
        ("client/worker.py", "from flwr.app import Message"),
        ("client/worker.py", "import pickle"),
        ("models/vae.py", "from importlib import import_module"),
        ("models/vae.py", "importlib.import_module('os')"),
        ("models/vae.py", "from monai import bundle"),
        ("models/vae.py", "import monai.fl.client"),
        ("models/vae.py", "torch.load('x')"),
        ("models/vae.py", "eval('1')"),
        ("models/vae.py", "__import__('os')"),
        ("models/vae.py", "try:\n    pass\nexcept:\n    pass"),
    ],
)
def test_a_broken_rule_is_found(file: str, source: str) -> None:
    """The check above can fail: each planted fault is reported."""
    assert faults(file, source)


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_open(path: Path) -> None:
    """No stub, no skipped test, no test file too long to read."""
    text = path.read_text()
    marks = ("TO" + "DO", "NotImplemented" + "Error", "pytest." + "skip", "mark." + "skip")
    assert [mark for mark in (*marks, "x" + "fail") if mark in text] == []
    assert len(text.splitlines()) <= MOST_LINES


HELP = """
import contextlib, io, sys
import typer
from voxfed.cli import app
def walk(command, path=()):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))
command = typer.main.get_command(app)
paths = list(walk(command))
for path in paths:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        command.main([*path, "--help"], standalone_mode=False)
    assert "Usage" in text.getvalue(), path
print(len(paths), *sorted(sys.modules))
"""


def test_help_is_light() -> None:
    """No `--help` of any command loads torch or anything as heavy: it would take seconds."""
    run = [sys.executable, "-W", "ignore", "-c", HELP]
    count, *loaded = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    assert int(count) > 20
    assert {"voxfed.cli", "typer"} <= set(loaded)
    assert [name for name in HEAVY if name in loaded] == []


def test_the_courier_is_light() -> None:
    """The process with the network holds no torch, no scans and no ledger."""
    run = [sys.executable, "-W", "ignore", "-c"]
    run.append("import sys, voxfed.client.courier; print(*sys.modules)")
    loaded = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    assert "voxfed.client.courier" in loaded
    forbidden = ("torch", "monai", "nibabel", "voxfed.models", "voxfed.privacy")
    forbidden += ("voxfed.client.worker", "voxfed.client.site", "voxfed.client.cohort")
    assert [name for name in forbidden if name in loaded] == []


def test_packages_are_listed() -> None:
    """A wheel holds every package: a forgotten one breaks only installed copies."""
    folders = {
        "/".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE if p.name == "__init__.py"
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == {".".join(["voxfed", *filter(None, f.split("/"))]) for f in folders}
    with_code = {p.parent for p in PACKAGE} - {ROOT}
    assert [folder for folder in with_code if not (folder / "__init__.py").is_file()] == []


def test_test_files_mirror_modules() -> None:
    """Whoever looks for a module's tests finds them under the same path."""
    for path in _sources("tests"):
        place = path.relative_to(ROOT / "tests")
        if place.parts[0] in {"end_to_end", "test_architecture.py"} or path.stem[:5] != "test_":
            continue
        words = path.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:n]) for n in range(1, len(words) + 1)]  # engine_learning: engine
        tested = [(ROOT / place).with_name(name) for name in names]
        found = [t for t in tested if t.with_suffix(".py").is_file() or t.is_dir()]
        assert found, f"{place} tests no module"


def _named(requirements: list[str]) -> set[str]:
    return {_normal(re.split(r"[\[<>=~! ]", text)[0]) for text in requirements}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _third_party(paths: list[Path]) -> set[str]:
    """Return the distributions that the files import from."""
    owners = importlib.metadata.packages_distributions()
    found = set()
    for path in paths:
        for level, module in _imports(path.name, ast.parse(path.read_text())):
            top = module.split(".")[0]
            if not level and top not in sys.stdlib_module_names | {"voxfed"} and top in owners:
                found.update(_normal(name) for name in owners[top])
    return found


def test_dependencies_are_named_and_used() -> None:
    """Every third-party import of the package is in pyproject, and everything there is imported."""
    assert _third_party(PACKAGE) == _named(PROJECT["project"]["dependencies"])


def test_tests_need_only_what_is_named() -> None:
    """Tests and benchmarks import nothing that pyproject leaves out."""
    extra = PROJECT["project"]["optional-dependencies"]["tests"]
    named = _named(PROJECT["project"]["dependencies"] + extra)
    assert _third_party(EVERYTHING) <= named


def test_everything_named_is_pinned() -> None:
    """requirements.txt pins each dependency exactly, without paths or local versions."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    extra = PROJECT["project"]["optional-dependencies"]["tests"]
    assert _named(PROJECT["project"]["dependencies"] + extra) <= _named(pins)
    assert [pin for pin in pins if re.match(r"(?i)nvidia|cuda|triton", pin)] == []
