"""The package as a whole: light to import, its names, its shipped files, and the wheel away from the checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest
from conftest import loaded_by

import oneshot_ml2
from oneshot_ml2.common import resources
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.accelerator import preset_names

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numba", "h5py", "tvm", "numpy", "tqdm", "safetensors", "matplotlib")


def in_a_new_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    return done.stdout


def test_import_is_light() -> None:
    assert loaded_by("import oneshot_ml2", HEAVY) == set()


def test_import_is_fast() -> None:
    code = "import time; begin = time.perf_counter(); import oneshot_ml2; print(time.perf_counter() - begin)"
    # The best of three, since other processes may hold the machine up.
    assert min(float(in_a_new_process(code)) for _ in range(3)) < 0.3


LIGHT = (
    "vta.accelerator", "spaces.space", "workload.registry", "models.zoo", "common.resources", "commands.main",
    "common.tables",
)  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_the_light_modules_leave_the_heavy_packages_alone(module: str) -> None:
    assert loaded_by(f"import oneshot_ml2.{module}", ("torch", "numba", "h5py", "tvm")) == set()


# The tree ------------------------------------------------------------------------------------
PACKAGE = Path(str(oneshot_ml2.__file__)).parent


def imports_within(package: Path) -> tuple[dict[str, set[str]], list[str]]:
    """Module -> modules of the package that it imports when it runs, and a line for each such import in a function."""
    paths = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        paths[name.removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {name: set() for name in paths}
    inside: list[str] = []

    def visit(module: str, node: ast.AST, in_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            names = [alias.name for alias in child.names] if isinstance(child, (ast.Import, ast.ImportFrom)) else []
            if isinstance(child, ast.ImportFrom):
                names = [f"{child.module}.{name}" for name in names]
            for name in names:
                found = next((known for known in (name, name.rpartition(".")[0]) if known in paths), None)
                if found is not None:
                    graph[module].add(found)
                    if in_function:
                        inside.append(f"{module}:{child.lineno} {found}")
            visit(module, child, in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    for module, path in paths.items():
        visit(module, ast.parse(path.read_text(encoding="utf-8")), False)
    return graph, inside


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Modules that remain when those that import nothing, or are imported by nothing, are taken away in turns."""
    left = set(graph)
    while True:
        imported = set().union(*(graph[module] for module in left)) if left else set()
        free = {module for module in left if not graph[module] & left or module not in imported}
        if not free:
            return left
        left -= free


def test_the_root_of_the_package_holds_rooms_alone() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "c", "data")}
    assert all((PACKAGE / room / "__init__.py").is_file() for room in rooms)
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert {room for room in rooms if f"| `{room}/` |" not in architecture} == set()


def test_imports_go_one_way_and_stand_at_the_top() -> None:
    graph, inside = imports_within(PACKAGE)
    assert len(graph) > 100
    assert in_circles(graph) == set()
    assert len(inside) < 15, inside


def test_circles_and_imports_in_functions_are_seen(tmp_path: Path) -> None:
    package = tmp_path / "some"
    (package / "room").mkdir(parents=True)
    for name, text in (
        ("__init__", ""),
        ("room/__init__", ""),
        ("room/a", "from some.room import b"),
        ("room/b", "def late():\n    if True:\n        from some.c import thing"),
        ("c", "import some.room.a"),
        ("d", "from some.c import x\nif TYPE_CHECKING:\n    from some.e import y"),
        ("e", "import some.d"),
    ):
        (package / f"{name}.py").write_text(text)
    graph, inside = imports_within(package)
    assert in_circles(graph) == {"some.room.a", "some.room.b", "some.c"}
    assert inside == ["some.room.b:3 some.c"]


def test_every_exported_name_is_there() -> None:
    for name in oneshot_ml2.__all__:
        assert getattr(oneshot_ml2, name) is not None
        assert name in dir(oneshot_ml2)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        oneshot_ml2.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(str(oneshot_ml2.__file__)).read_text(encoding="utf-8"))
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {None} == set(oneshot_ml2.__all__)


def test_resources() -> None:
    assert "resnet18.toml" in resources.names("workloads")
    assert resources.find("workloads", "resnet18.toml").is_file()
    assert resources.find("accelerators", "heldout").is_dir()
    assert resources.find("accelerators", "pynq.json").is_file()
    assert resources.find("pretrained", "default@1.safetensors").is_file()
    assert resources.find("pretrained", "default@1.json").is_file()
    with pytest.raises(OneShotError, match=r"did you mean 'resnet18\.toml'\? There are: .*train\.toml"):
        resources.find("workloads", "resnet.toml")
    with pytest.raises(OneShotError, match="no resources of kind 'models'"):
        resources.find("models", "x")


def test_readme_names_what_exists() -> None:
    """Local links, and the commands that the README and the documents quote."""
    from oneshot_ml2.commands import main

    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ):
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"
        shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
        for command in re.findall(r"oneshot-ml2 ([a-z]+)", shell) + re.findall(r"`oneshot-ml2 ([a-z]+)", text):
            assert command in main.COMMANDS, f"{path.name}: oneshot-ml2 {command}"
        for script in re.findall(r"python ((?:benchmarks|train|datasets)/\S+\.py)", text):
            assert (ROOT / script).is_file(), f"{path.name}: {script}"


@pytest.mark.slow
def test_wheel_works_away_from_the_checkout(tmp_path: Path) -> None:
    """Build the wheel, install it alone beside this environment's packages, and compile from another folder."""
    begin = time.time()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("oneshot_ml2-*.whl")
    assert wheel.stat().st_size < 20e6
    assert wheel.stat().st_mtime >= begin - 1

    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    target = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-compile", "--target", target, wheel], check=True)
    # Dependencies come from here, appended, so that nothing else of this environment comes first.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (target / "dependencies.pth").write_text("\n".join(dependencies))

    def run(code: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("import oneshot_ml2; print(oneshot_ml2.__file__)")
    assert Path(where.strip()).is_relative_to(target)
    for kind in resources.KINDS:
        here = {name for name in resources.names(kind) if name[0] not in "._"}
        assert set(eval(run(f"from oneshot_ml2.common import resources; print(resources.names({kind!r}))"))) == here
    # The C sources.
    run("from oneshot_ml2.commands.main import main; exit(main(['driver', 'build', '--backend', 'sim']))")
    listing = run("from oneshot_ml2.commands.main import main; main(['accelerators'])")
    assert all(name in listing for name in preset_names())
    table = run("from oneshot_ml2.commands.main import main; exit(main(['compile', 'resnet18', '--size', '64']))")
    assert "VTA layers equal the integer reference bit for bit" in table
