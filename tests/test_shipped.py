"""What lies beside a shipped potential belongs to it: its train.yaml trains the like from files that are here."""

from pathlib import Path

import pytest

from ase_equinn.data import file_sha256
from ase_equinn.potential import Potential, shipped_potentials
from ase_equinn.train_card import PARTS
from ase_equinn.train_config import load_config
from ase_equinn.train_sets import locate
from ase_equinn.train_start import with_start

DATA = Path(__file__).parents[1] / "examples" / "data"


@pytest.mark.parametrize("name", sorted(shipped_potentials()))
def test_the_training_of_a_shipped_potential_can_be_repeated(name):
    """train.yaml is what the potential's header says, and every file that it names is found, with its sha256."""
    folder = shipped_potentials()[name]
    config = load_config(folder / "train.yaml")
    facts = Potential.load(folder).metadata
    own = load_config(facts["training"]["config"] | {"output": config.output})
    assert config.model_dump(exclude_none=True) == own.model_dump(exclude_none=True)
    found = locate(config.data, folder, DATA)
    for part in PARTS:
        entries = getattr(config.data, part)
        assert [file_sha256(path) for path in found[part]] == [entry.sha256 for entry in entries] and entries
        assert all(entry.licence and entry.source for entry in entries)
        assert facts["training_data"]["files"][part] == [entry.model_dump(exclude_none=True) for entry in entries]
    started, starts = with_start(config, folder, DATA)
    assert started == config and len(starts) == 1
