"""Path-integral MD of ethanol: i-PI moves 4 beads, two clients share their forces; nuclei are quantum, not classical.

Needs i-PI (pip install "ase_equinn[ipi]") and a potential: examples/train_ethanol.py makes one in five minutes.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--potential", default="ethanol", help="folder, as train_ethanol.py writes it")
parser.add_argument("--steps", type=int, default=1000, help="of 0.25 fs")
parser.add_argument("--clients", type=int, default=2)
parser.add_argument("--socket", default="ethanol", help="another name for each run on this machine at the same time")
parser.add_argument("--out", default="pimd", help="folder")
args = parser.parse_args()

here, out, programs = Path(__file__).parent, Path(args.out), Path(sys.executable).parent
out.mkdir(exist_ok=True)
atoms = read(here / "data" / "ethanol_rmd17" / "valid.xyz")
box = "# CELL(abcABC): 30 30 30 90 90 90 cell{angstrom} positions{angstrom}"
atoms.write(out / "start.xyz", format="xyz", comment=box)
text = (here / "pimd_ethanol.xml").read_text()
text = re.sub("<total_steps>.*</total_steps>", f"<total_steps> {args.steps} </total_steps>", text)
text = re.sub("<address>.*</address>", f"<address> {args.socket} </address>", text)
(out / "input.xml").write_text(text)

potential = Path(args.potential).resolve()
client = [programs / "equinn", "ipi", "start.xyz", "--potential", potential, "--socket", args.socket]
with open(out / "ipi.log", "w") as log:
    server = subprocess.Popen([programs / "i-pi", "input.xml"], cwd=out, stdout=log, stderr=log)
    clients = [subprocess.Popen(client, cwd=out, stdout=subprocess.PIPE, text=True) for _ in range(args.clients)]
    for k, process in enumerate(clients):
        print(f"client {k}: {process.communicate()[0].strip()}")
    if any(process.returncode for process in clients):  # the server would wait for another client for ever
        server.terminate()
    if server.wait():
        sys.exit(f"i-PI ended with status {server.returncode}, see {out / 'ipi.log'}")

rows = np.loadtxt(out / "pimd.out", ndmin=2)
rows = rows[len(rows) // 2 :]
classical = 1.5 * len(atoms) * units.kB * 300
kinetic = rows[:, 3].mean()
print(f"{args.steps} steps of 4 beads: kinetic energy {kinetic:.2f} eV, classical nuclei have {classical:.2f} eV")
print(f"conserved energy within {1000 * np.ptp(rows[:, 5]):.1f} meV; trajectories: {out}/pimd.pos_*.xyz")
