"""What an installation gives: a light import, the shipped potentials in wheel and editable installs, command, plug-in."""

import ast
import configparser
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


def requirements(extra: str = "") -> set[str]:
    """Names of what `pip install "ase_equinn[extra]"` asks for directly."""
    parsed = [Requirement(text) for text in requires("ase_equinn")]
    return {item.name.lower() for item in parsed if not item.marker or item.marker.evaluate({"extra": extra})}


def top_level_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_base_requirements_cover_the_unconditional_imports():
    """A third-party import at the top of a file needs a base requirement, or plain `pip install .` breaks."""
    distribution = {"yaml": "pyyaml"}
    for path in (ROOT / "ase_equinn").rglob("*.py"):
        foreign = top_level_imports(path) - sys.stdlib_module_names - {"ase_equinn"}
        missing = {distribution.get(name, name) for name in foreign} - requirements()
        assert not missing, path.name


def test_constraints_cover_every_requirement():
    """Each requirement, those of the test extra included, is pinned: the versions that CI runs with are written down."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    pinned = {line.split("==")[0].lower() for line in lines}
    needed = set().union(*(requirements(extra) for extra in ("", "train", "plot", "phonons", "pymatgen", "triton", "lammps", "ipi", "torchsim", "test")))
    assert {"numpy", "torch", "pytest", "lightning"} <= needed
    assert not needed - {"ase-equinn", "ase_equinn"} - pinned


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
def source(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that building leaves nothing behind in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("ase_equinn", "potentials"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def build(source: Path, kind: str) -> Path:
    """Builds with the setuptools installed here, as pip does, but without network."""
    code = f"from setuptools.build_meta import build_{kind} as build; build('{kind}')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (path,) = (source / kind).glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    return build(source, "wheel")


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


LIST_SHIPPED = """
import ase_equinn.potential as p
print(p.__file__)
print(*sorted(p.shipped_potentials()))
"""


def shipped() -> set[str]:
    return {path.parent.name for path in (ROOT / "potentials").glob("*/model.safetensors")}


def test_wheel_works_from_anywhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    place, names = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + LIST_SHIPPED, "-I").stdout.split("\n")[:2]
    assert place.startswith(str(tmp_path))
    assert set(names.split()) == shipped()


def test_editable_install_keeps_the_potentials(source, tmp_path):
    """An editable wheel is a .pth file and an import hook; site.addsitedir runs it as an installation would."""
    zipfile.ZipFile(build(source, "editable")).extractall(tmp_path)
    # -S keeps the environment's site-packages out. They come after the first import, for numpy and torch: the package in
    # them must not be the one that is found.
    purelib = sysconfig.get_path("purelib")
    code = f"import site, sys; site.addsitedir({str(tmp_path)!r}); import ase_equinn.potentials; sys.path.append({purelib!r})"
    place, names = run(code + LIST_SHIPPED, "-S").stdout.split("\n")[:2]
    assert place.startswith(str(source))
    assert set(names.split()) == shipped()
