"""The shipped potentials: one folder each, loaded by name, e.g. `EquiCalculator("silicon")`."""
