"""Relaxation and molecular dynamics with any ASE calculator: what `equinn relax` and `equinn md` call."""

from .md import MDRun, MDSettings, md
from .relax import Relaxed, RelaxSettings, relax
from .runfiles import RunError, RunFileError

__all__ = ["MDRun", "MDSettings", "Relaxed", "RelaxSettings", "RunError", "RunFileError", "md", "relax"]
