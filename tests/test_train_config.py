"""The training configuration: defaults for a newcomer, and errors that name the key, the value and what was meant."""

import pytest

from ase_equinn.train_config import ConfigError, load_config, parse_time, to_yaml
from ase_equinn.train_statistics import check_model

SMALLEST = {"data": {"train": "a.xyz", "valid": "b.xyz"}, "output": "folder"}


def test_two_lines_are_enough(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {train: a.xyz, valid: b.xyz}\noutput: folder\n")
    config = load_config(path)
    assert config == load_config(SMALLEST)
    assert [f.file for f in config.data.train] == ["a.xyz"] and config.output == "folder"
    assert config.model.name == "mace" and config.max_seconds is None


def test_resolved_yaml_reads_back(tmp_path):
    config = load_config(
        SMALLEST
        | {
            "data": {"train": ["a.xyz", {"file": "c.xyz", "sha256": "0" * 64, "source": "example.org"}]},
            "max_time": "25min",
        }
        | {"model": {"name": "schnet", "n_layers": 2}, "reference_energies": {"Si": -1.5}}
    )
    path = tmp_path / "train.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    assert "huber_delta" in path.read_text() and "n_layers: 2" in path.read_text()


@pytest.mark.parametrize(
    "text, seconds", [("90s", 90), ("25min", 1500), ("2h", 7200), ("1h30min", 5400), ("0.5h", 1800), ("1h 5s", 3605)]
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["25", "25m", "", "0s", "min", "-5s", "1 day"])
def test_bad_times_are_named(text):
    with pytest.raises(ValueError, match="90s, 25min, 2h") as error:
        parse_time(text)
    assert repr(text) in str(error.value)


def changed(section, **values):
    return SMALLEST | {section: SMALLEST.get(section, {}) | values} if section else SMALLEST | values


@pytest.mark.parametrize(
    "config, words",
    [
        (changed(None, outptu="x"), ["unknown key 'outptu'", "did you mean 'output'?"]),
        (changed("data", trian="x"), ["unknown key 'data.trian'", "did you mean 'train'?"]),
        (changed("data", train=[{"file": "a", "sha": "b"}]), ["'data.train.0.sha'", "did you mean 'sha256'?"]),
        (changed("data", keys={"energi": "E"}), ["'data.keys.energi'", "did you mean 'energy'?"]),
        (changed("training", learning_rat=1), ["'training.learning_rat'", "did you mean 'learning_rate'?"]),
        (changed("training", learning_rate="fast"), ["training.learning_rate", "'fast'"]),
        (changed("training", batch_size=0), ["training.batch_size", "greater than or equal to 1", "got 0"]),
        (changed("loss", kind="mae"), ["loss.kind", "'mse' or 'huber'", "'mae'"]),
        (changed("loss", forces=-1.0), ["loss.forces", "got -1.0"]),
        (changed("data", valid_fraction=1.5), ["data.valid_fraction", "got 1.5"]),
        (changed("data", train=[]), ["data.train", "at least 1"]),
        (changed(None, max_time=25), ["max_time", "25min", "got 25"]),
        (changed(None, model="nequp"), ["model.name", "'nequip'", "'nequp'"]),
        ({"output": "x"}, ["'data' is missing"]),
        ({"data": {"valid": "b.xyz"}, "output": "x"}, ["'data.train' is missing"]),
        ("a.yaml: no".split(), ["a mapping with the keys data and output"]),
    ],
)
def test_errors_name_key_and_value(config, words):
    with pytest.raises(ConfigError) as error:
        load_config(config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_several_errors_come_together():
    with pytest.raises(ConfigError) as error:
        load_config(changed("training", batch_size=0, epochs=0))
    assert len(str(error.value).splitlines()) == 2


def test_numbers_in_yaml_1_1_notation(tmp_path):
    """PyYAML reads 1e-3 as text; it is a number all the same."""
    path = tmp_path / "config.yaml"
    path.write_text("data: {train: a.xyz}\noutput: x\ntraining: {learning_rate: 1e-3}\n")
    assert load_config(path).training.learning_rate == 1e-3


@pytest.mark.parametrize(
    "text, words",
    [
        ("data: {train: a.xyz\n", "not valid YAML"),
        ("data: {train: a.xyz}\noutput: x\noutput: y\n", "the key 'output' stands twice"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_an_error_and_runs_nothing(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="config.yaml") as error:
        load_config(path)
    assert words in str(error.value)


def test_missing_config_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        load_config(tmp_path / "none.yaml")


def test_model_keys_are_those_of_its_class():
    check_model(load_config(changed("model", name="schnet", n_channels=16)).model)
    with pytest.raises(ConfigError, match="unknown key 'model.n_layer' of mace; did you mean 'n_layers'"):
        check_model(load_config(changed("model", n_layer=3)).model)
    with pytest.raises(ConfigError, match="unknown key 'model.species'"):
        check_model(load_config(changed("model", species=[14])).model)
