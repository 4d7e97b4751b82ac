"""What a step in LAMMPS costs on any number of ranks: a model of few constants, and the command that applies it.

    python benchmarks/scaling_model.py silicon.json [mace.json ...] [--interval 100]

reads what lammps_scaling.py wrote, calibrates the constants by its runs "alone" (ranks without neighbours, all cores
busy), prints what they predict for all runs beside what was measured, and what more ranks would give.

A domain is cut into pieces (halo.Pieces) of at most `piece` atoms. Layer t of L is evaluated for a piece and what lies
within (L - t) cutoff of it, the atoms within L cutoff are listed, ghosts fill a box L cutoff + skin wider all around:

    seconds = layer sum_pieces sum_t N_t + listed sum_pieces N_0 + ghost N_ghosts + rest (N_own + N_ghosts)
              + bytes / bandwidth + messages latency
    N_t     = density (V + A d + M d^2 + 4/3 pi d^3), d = (L - t) cutoff     (Steiner; V, A, M of the box)

Sizes are lengths in A, times seconds.
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

CELL = 5.469  # A, of silicon in the shipped potential
DENSITY = 8 / CELL**3  # atoms/A^3
BYTES = 24 + 24 + 72  # of a ghost in a step: position there, force back by LAMMPS; force and virial back by us
MEASURED = ("model", "list", "ghosts", "rest")


class Potential(NamedTuple):
    """How far atoms see: `layers` steps of `cutoff`, in A."""

    layers: int
    cutoff: float = 5.0


class Setting(NamedTuple):
    """What a run is told: the skin in A and the number of atoms in a piece at most."""

    skin: float = 1.0
    piece: int = 50_000


class Work(NamedTuple):
    """What a rank has to do in a step, in atoms."""

    own: float
    ghosts: float
    layers: float  # atoms that a layer is evaluated for, of all layers and pieces
    listed: float  # atoms in pieces


class Constants(NamedTuple):
    """Seconds for an atom."""

    layer: float  # that one layer is evaluated for
    listed: float
    ghost: float  # packed and added at home
    rest: float  # own or ghost: LAMMPS, copies, checks
    renewal: float  # listed, in a step that exchanges atoms: pieces, lists


class Network(NamedTuple):
    """Between ranks: bytes/s of each, and seconds for a message."""

    bandwidth: float
    latency: float


def around(sides: tuple[float, float, float], d: float) -> float:
    """Volume of all points within d of a box, A^3 (Steiner's formula)."""
    p, q, r = sides
    return p * q * r + 2 * d * (p * q + q * r + r * p) + math.pi * d**2 * (p + q + r) + 4 / 3 * math.pi * d**3


def work(sides: tuple[float, float, float], potential: Potential, setting: Setting) -> Work:
    """Of a rank whose domain has these sides in a crystal of silicon, with other atoms all around."""
    own, pieces, side = DENSITY * math.prod(sides), 1, sorted(sides)
    while own / pieces > setting.piece:  # halved along the longest side, as halo.Pieces does
        side = sorted([*side[:2], side[2] / 2])
        pieces *= 2
    distances = [k * potential.cutoff for k in range(potential.layers + 1)]
    *evaluated, listed = (DENSITY * pieces * around(side, d) for d in distances)
    wide = 2 * (distances[-1] + setting.skin)
    return Work(own, DENSITY * math.prod(s + wide for s in sides) - own, sum(evaluated), listed)


def cost(done: Work, constants: Constants) -> dict[str, float]:
    """Seconds of a step that exchanges no atoms, by part, without the time that messages take."""
    return {
        "model": constants.layer * done.layers,
        "list": constants.listed * done.listed,
        "ghosts": constants.ghost * done.ghosts,
        "rest": constants.rest * (done.own + done.ghosts),
    }


def transfer(done: Work, n_ranks: int, network: Network) -> float:
    """Seconds that a step's messages take: ghosts to and from 26 neighbours, two sums over all ranks."""
    if n_ranks == 1:
        return 0.0
    messages = 6 + 6 + min(26, n_ranks - 1) + 2 * math.ceil(math.log2(n_ranks))
    return BYTES * done.ghosts / network.bandwidth + messages * network.latency


def step(n_atoms, n_ranks, potential, setting, constants, network, interval) -> float:
    """Seconds of a mean step on cubic domains, with an exchange of atoms every `interval` steps."""
    done = work((cube(n_atoms / n_ranks),) * 3, potential, setting)
    renewed = constants.renewal * done.listed / interval
    return sum(cost(done, constants).values()) + renewed + transfer(done, n_ranks, network)


def ideal(n_atoms: float, potential: Potential, constants: Constants) -> float:
    """Seconds of a step without ghosts, halos or messages on one rank: what 100 % is."""
    return n_atoms * (constants.layer * potential.layers + constants.listed + constants.rest)


def cube(n_atoms: float) -> float:
    """Side of a cube of so many atoms, A."""
    return (n_atoms / DENSITY) ** (1 / 3)


def atoms_needed(efficiency: float, *arguments) -> float | None:
    """Atoms a rank for this efficiency on many ranks (1024), to 1 %; None if a hundred million are too few."""
    potential, _, constants = arguments[:3]
    low, high = 100.0, 1e8

    def reached(n: float) -> bool:
        return ideal(n, potential, constants) >= efficiency * step(1024 * n, 1024, *arguments)

    if not reached(high):
        return None
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def parts_of(rank: dict) -> dict[str, float]:
    """What was measured of a step, in the model's parts; `messages` holds the waiting of ranks for each other too."""
    parts, seconds = rank["parts"], rank["step"]
    messages = parts["wait"] + parts["transfer"] + parts["report"] + parts["refresh"]
    ghosts = parts["exchange"] - parts["wait"] - parts["transfer"]
    known = {"model": parts["model"], "list": parts["list"], "ghosts": ghosts}
    return known | {"rest": seconds - sum(known.values()) - messages, "messages": messages}


def calibrate(runs: list[dict], potential: Potential) -> Constants:
    """From runs of one rank: each constant from its own part, by least squares of relative errors."""
    done = [(work(sides_of(run), potential, setting_of(run)), rank) for run in runs for rank in run["ranks"]]
    parts = [parts_of(rank) for _, rank in done]

    def fit(amounts: list[float], seconds: list[float]) -> float:
        return sum(x / s for x, s in zip(amounts, seconds)) / sum((x / s) ** 2 for x, s in zip(amounts, seconds))

    return Constants(
        layer=fit([w.layers for w, _ in done], [p["model"] for p in parts]),
        listed=fit([w.listed for w, _ in done], [p["list"] for p in parts]),
        ghost=fit([w.ghosts for w, _ in done], [p["ghosts"] for p in parts]),
        rest=fit([w.own + w.ghosts for w, _ in done], [p["rest"] for p in parts]),
        renewal=fit([w.listed for w, _ in done], [renewal_of(rank) for _, rank in done]),
    )


def renewal_of(rank: dict) -> float:
    """Seconds that a step takes more when it exchanges atoms: the first of a run, with LAMMPS's own preparation."""
    return rank["first"]["callback"] + rank["first"]["before"] - rank["parts"]["callback"]


def sides_of(run: dict) -> tuple[float, float, float]:
    """Of the domain of a rank: LAMMPS halves the longest side for two."""
    x, y, z = sorted(CELL * n for n in run["cells"])
    return x, y, z if run["alone"] else z / len(run["ranks"])


def setting_of(run: dict) -> Setting:
    return Setting(run["skin"], run["piece"])


def predicted(run: dict, potential: Potential, constants: Constants, network: Network) -> dict[str, float]:
    """Seconds of a step by part and of the whole, and what an exchange of atoms adds."""
    done, n_ranks = work(sides_of(run), potential, setting_of(run)), 1 if run["alone"] else len(run["ranks"])
    parts = cost(done, constants) | {"messages": transfer(done, n_ranks, network)}
    return parts | {"step": sum(parts.values()), "exchange": constants.renewal * done.listed}


def memory(runs: list[dict], potential: Potential) -> list[float]:
    """MB of a rank beyond what the program takes without atoms: fixed, for a listed atom, for an atom of a piece."""
    import numpy as np

    rows, added = [], []
    for run in runs:
        done, setting = work(sides_of(run), potential, setting_of(run)), setting_of(run)
        pieces = 2 ** max(0, math.ceil(math.log2(done.own / setting.piece)))
        rows += [[1.0, done.listed, done.listed / pieces]] * len(run["ranks"])
        added += [rank["peak_mb"] - rank["before_mb"] for rank in run["ranks"]]
    return np.linalg.lstsq(np.array(rows), np.array(added), rcond=None)[0].tolist()


def print_comparison(runs: list[dict], potential: Potential, constants: Constants, network: Network) -> None:
    names = "model", "list", "ghosts", "messages", "rest"
    print(
        "\n| run | ranks | atoms | pieces of | predicted s | measured s | " + " | ".join(names) + ", ms | exchange, s |"
    )
    print("|---" * (7 + len(names)) + "|")
    for run in runs:
        rank, n_atoms = max(run["ranks"], key=lambda r: r["step"]), sum(r["own"] for r in run["ranks"])
        expected, parts = predicted(run, potential, constants, network), parts_of(rank)
        cells = [
            run["kind"],
            len(run["ranks"]),
            n_atoms,
            run["piece"],
            f"{expected['step']:.3f}",
            f"{rank['step']:.3f}",
        ]
        cells += [f"{1e3 * expected[k]:.1f} / {1e3 * parts[k]:.1f}" for k in names]
        cells.append(f"{expected['exchange']:.2f} / {renewal_of(rank):.2f}")
        print("| " + " | ".join(map(str, cells)) + " |")


def print_extrapolation(n_atoms: float, *arguments) -> None:
    potential, setting, constants, network, _ = arguments
    print(f"\n{n_atoms:.0e} atoms, {potential.layers} layers, pieces of {setting.piece}, {network}\n")
    print("| ranks | atoms a rank | s a step | efficiency | ghosts an atom | layers an atom | messages |")
    print("|---|---|---|---|---|---|---|")
    for n_ranks in (2**k for k in range(1, 11)):
        n = n_atoms / n_ranks
        done, seconds = work((cube(n),) * 3, potential, setting), step(n_atoms, n_ranks, *arguments)
        share = transfer(done, n_ranks, network) / seconds
        print(
            f"| {n_ranks} | {n:.3g} | {seconds:.3g} | {ideal(n, potential, constants) / seconds:.0%} |"
            f" {done.ghosts / n:.2f} | {done.layers / n:.2f} | {share:.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--interval", type=float, default=50, help="steps between exchanges of atoms")
    parser.add_argument("--bandwidth", type=float, default=1e9, help="bytes/s of a rank, assumed")
    parser.add_argument("--latency", type=float, default=2e-6, help="s of a message, assumed")
    options = parser.parse_args()
    network = Network(options.bandwidth, options.latency)
    by_model: dict[str, list[dict]] = {}
    for file in options.files:
        for run in json.loads(file.read_text())["runs"]:
            if run["engine"] == "lammps":
                by_model.setdefault(run["model"], []).append(run)
    for model, runs in by_model.items():
        potential = Potential(len(runs[0]["ranks"][0]["layers"]) - 1)
        single = [run for run in runs if run["kind"] == "alone"] or [run for run in runs if run["kind"] == "one"]
        constants = calibrate(single, potential)
        print(
            f"\n## {model}\n\nus for an atom: "
            + ", ".join(f"{k} {1e6 * v:.3g}" for k, v in constants._asdict().items())
        )
        if len({run["piece"] for run in runs}) > 1:
            fixed, listed, piece = memory(runs, potential)
            kb = f"{1e3 * listed:.1f} kB a listed atom, {1e3 * piece:.1f} kB more of the largest piece"
            print(f"memory: {fixed:.0f} MB, {kb}")
        print_comparison(runs, potential, constants, network)
        for piece in (50_000, 10**9):
            arguments = potential, Setting(piece=piece), constants, network, options.interval
            for n_atoms in (1e6, 1e8):
                print_extrapolation(n_atoms, *arguments)
            for layers in (2, 3):
                needed = [atoms_needed(e, Potential(layers), *arguments[1:]) for e in (0.5, 0.8, 0.9)]
                print(
                    f"{layers} layers: atoms a rank for 50, 80, 90 %:", *(f"{n:.2g}" if n else "never" for n in needed)
                )


if __name__ == "__main__":
    main()
