"""Registers the calculator with ASE under the name "equinn", without importing torch.

`import ase.io` loads the object that the `ase.ioformats` entry point of setup.cfg names. Importing this module for it runs
`register_calculator_class`, after which `ase run equinn FILE -p model=silicon` and `get_calculator_class("equinn")` work.
"""

from ase.calculators.calculator import register_calculator_class
from ase.utils.plugins import ExternalIOFormat


def equinn(*args, **kwargs):
    """An `EquiCalculator` built from the same arguments; importing torch waits for this call."""
    from ase_equinn.calculator import EquiCalculator

    return EquiCalculator(*args, **kwargs)


equinn.nolabel = True  # `ase run` then passes no label=...

register_calculator_class("equinn", equinn)

# ASE warns about an entry point that is not an ExternalIOFormat. This one has no reader, writer, pattern or extension, so
# that no file is ever taken for it.
equinn_format = ExternalIOFormat(desc="calculator of ase_equinn (no file format)", code="1F", module=__name__)
