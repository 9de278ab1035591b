"""What starting costs: help without torch, an audit with little more than torch."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Prints the CPU time of `import torch` and of what follows it in one process, so that both see the same machine.
MEASURE = """
import sys, time
before = time.process_time()
import torch
torch_ = time.process_time() - before
import pfungst.audit.anomaly.run
print(torch_, time.process_time() - before)
heavy = {"torch._dynamo", "sklearn", "scipy", "pandas", "matplotlib", "torchvision", "timm", "transformers"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
HELP = """
import sys, time
sys.argv = ["pfungst", "audit", "similarity", "--help"]
from pfungst.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "rich"} & set(sys.modules)
assert not heavy, heavy
print(time.process_time())
"""


def measured(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split("\n")[-2].split()]


def test_an_audit_starts_with_little_more_than_torch():
    """It took 2.9 times as long: scikit-learn, SciPy, pandas and the compiler of torch came with it."""
    runs = [measured(MEASURE) for _ in range(3)]
    assert statistics.median(whole / torch_ for torch_, whole in runs) < 1.4


def test_help_takes_a_fraction_of_a_second():
    measured(HELP)  # so that the bytecode is there
    assert statistics.median(measured(HELP)[0] for _ in range(3)) < 0.6


def test_folding_a_network_does_not_import_the_compiler():
    """A mode of torch imported it, which cost the classifier audit seconds."""
    measured(
        "import sys, torch\n"
        "from torch import nn\n"
        "from pfungst.features.folded import folded\n"
        "net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()\n"
        "assert folded(net, torch.rand(2, 3, 8, 8)) is not net\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "print(0)\n"
    )
