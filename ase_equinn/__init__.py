"""E(3)-equivariant interatomic potentials as ASE calculators.

Names below are imported on first use, so `import ase_equinn` stays light: no torch until a model is touched.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "EquiCalculator": "calculator",
    "evaluate": "evaluate_batches",
    "Potential": "potential",
    "Committee": "potential_committee",
    "mean_potential": "potential_mean",
    "PotentialFileError": "potential",
    "read_header": "potential",
    "shipped_potentials": "potential",
    "Graph": "graph",
    "collate": "graph",
    "from_atoms": "graph",
    "SchNet": "models.schnet",
    "TFN": "models.tfn",
    "NequIP": "models.nequip",
    "MACE": "models.mace",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
