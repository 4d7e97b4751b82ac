"""What an installation gives: a light import, the shipped potentials in wheel and editable installs, command, plug-in."""

import ast
import configparser
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest

import ase_equinn

ROOT = Path(__file__).parents[1]


def run(code: str, *flags: str) -> subprocess.CompletedProcess:
    """Runs the installed package in a fresh interpreter, away from the checkout."""
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(sys.prefix), check=True)


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_import_takes_under_300_ms():
    """The cumulative time that the interpreter itself reports; the best of three, since other processes may run."""

    def microseconds():
        lines = run("import ase_equinn", "-X", "importtime").stderr.splitlines()
        return int(next(line for line in lines if line.split("|")[-1].strip() == "ase_equinn").split("|")[1])

    assert min(microseconds() for _ in range(3)) < 300_000


def test_import_loads_no_heavy_module():
    out = run("import sys, ase_equinn; print(*sorted(sys.modules))").stdout.split()
    assert "ase_equinn" in out
    assert not {"torch", "numpy", "scipy", "ase", "e3nn", "matplotlib", "lightning"} & set(out)


def test_every_public_name_resolves():
    for name in ase_equinn.__all__:
        assert getattr(ase_equinn, name) is not None
        assert name in dir(ase_equinn)
    with pytest.raises(AttributeError, match="no attribute 'Calculator'"):
        ase_equinn.Calculator  # noqa: B018


def test_version_is_the_installed_one():
    assert version("ase_equinn") == ase_equinn.__version__


def test_every_package_folder_is_listed():
    listed = set(setup_cfg()["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ase_equinn").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"ase_equinn.potentials"}


def test_base_requirements_cover_the_unconditional_imports():
    """A third-party import at the top of a file needs a base requirement, or plain `pip install .` breaks."""
    names = {requirement.split(";")[0].strip() for requirement in requires("ase_equinn") if "extra" not in requirement}
    base = {name.split(">")[0].split("<")[0].strip().lower() for name in names}
    distribution = {"yaml": "pyyaml"}
    for path in (ROOT / "ase_equinn").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                root = module.split(".")[0]
                if root not in sys.stdlib_module_names and root != "ase_equinn":
                    assert distribution.get(root, root) in base, f"{path.name} imports {root}"


def test_constraints_cover_every_requirement():
    """Each requirement of setup.cfg, the test extra included, is pinned, so CI's versions are the ones written down."""
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    config = setup_cfg()
    extras = {name: text for name, text in config["options.extras_require"].items() if name != "cluster"}
    lines = "\n".join([config["options"]["install_requires"], *extras.values()]).splitlines()
    needed = {line.split(">")[0].strip().lower() for line in lines if line.strip() and line[0] not in "#a "}
    needed |= {"ase"}
    assert {"numpy", "torch", "pytest"} <= needed
    assert not needed - pinned


def test_console_script_and_ase_entry_point():
    (script,) = entry_points(group="console_scripts", name="equinn")
    assert callable(script.load())
    (plugin,) = entry_points(group="ase.ioformats", name="equinn")
    assert plugin.value.startswith("ase_equinn.ase_plugin:")
    result = run("import warnings; warnings.simplefilter('error'); import ase.io, sys; print('torch' in sys.modules)")
    assert result.stdout.strip() == "False", "ase.io must stay usable without paying for torch"


def potential_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob("*/*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tracked files with the setuptools that is installed here: no network."""
    pytest.importorskip("setuptools", minversion="64", reason="no setuptools to build with")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ase_equinn", "potentials"):
        shutil.copytree(ROOT / name, source / name)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_wheel_holds_every_module_and_every_potential(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ase_equinn").rglob("*.py")}
    potentials = {f"ase_equinn/potentials/{name}" for name in potential_files(ROOT / "potentials")}
    assert not (modules | potentials) - names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_installed_package_holds_the_potentials():
    """The environment the tests run in, wheel or editable, finds the folders that the checkout has."""
    out = run("import ase_equinn.potentials as p; print(list(p.__path__)[0])").stdout.strip()
    assert potential_files(ROOT / "potentials") <= potential_files(Path(out))


def test_wheel_works_from_anywhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import ase_equinn.potential as p\n"
        "print(p.__file__); print(*sorted(p.shipped_potentials()))"
    )
    place, names = (run(code, "-I").stdout + "\n").split("\n")[:2]
    assert place.startswith(str(tmp_path))
    assert set(names.split()) == {path.parent.name for path in (ROOT / "potentials").glob("*/model.safetensors")}
