"""PatchCore against anomalib's: coreset selection, and fit + predict end to end, in one run.

    python benchmarks/patchcore.py --anomalib-python /path/to/python/with/anomalib

Each side runs in a process of its own, with the same threads, on the same matrix or images and the same backbone
weights. The peer's selection costs the same at every step, so for large matrices it is timed on --peer-steps
steps and scaled; such figures are marked "scaled". Without anomalib only our side is measured, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def peak() -> float:
    """Peak resident memory of this process since :func:`now` was called last, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def now() -> float:
    """Resident memory of this process, in MB; the peak is counted from here, without that of the imports."""
    Path("/proc/self/clear_refs").write_text("5")
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


# workers: each prints one line of JSON


def coreset_ours(folder: Path, size: int, steps: int) -> dict:
    import torch

    from pfungst.anomaly.coreset import greedy_coreset

    x = torch.from_numpy(np.load(folder / "matrix.npy"))
    base, start, cpu = now(), time.perf_counter(), time.process_time()
    core = greedy_coreset(x, size)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    np.save(folder / "ours.npy", core.indices.numpy())
    return {"seconds": seconds, "cpu": cpu, "mb": peak() - base, "steps": len(core.indices)}


def coreset_peer(folder: Path, size: int, steps: int) -> dict:
    import torch
    from anomalib.models.components import KCenterGreedy

    x = torch.from_numpy(np.load(folder / "matrix.npy"))
    torch.manual_seed(0)
    base, start, cpu = now(), time.perf_counter(), time.process_time()
    sampler = KCenterGreedy(embedding=x, sampling_ratio=size / len(x) + 1e-9)
    done = sampler.coreset_size = min(size, steps) if steps else size
    indices = sampler.select_coreset_idxs()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    np.save(folder / "peer.npy", np.asarray(indices))
    return {"seconds": seconds, "cpu": cpu, "mb": peak() - base, "steps": done}


def whole_ours(folder: Path, size: int, steps: int) -> dict:
    import warnings

    import torch
    import torchvision
    from safetensors.torch import load_file

    from pfungst.anomaly import PatchCore

    warnings.simplefilter("ignore")
    train, test = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("train", "test"))
    network = torchvision.models.resnet18(weights=None).eval()
    network.load_state_dict(load_file(folder / "backbone.safetensors"))
    model = PatchCore(network, layer_dim=192, dim=384, reweight=9, calibration=0, batch_size=8, device="cpu")
    base, start, cpu = now(), time.perf_counter(), time.process_time()
    model.fit(train)
    fitted = time.perf_counter() - start
    model.anomaly_score(test)
    model.anomaly_map(test[:1])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "fit": fitted, "cpu": cpu, "mb": peak() - base}


def whole_peer(folder: Path, size: int, steps: int) -> dict:
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from safetensors.torch import load_file

    train, test = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("train", "test"))
    model = PatchcoreModel(["layer2", "layer3"], backbone="resnet18", pre_trained=False, num_neighbors=9)
    state = load_file(folder / "backbone.safetensors")
    extractor = model.feature_extractor.feature_extractor
    missing = extractor.load_state_dict(
        {k: v for k, v in state.items() if k in extractor.state_dict()}, strict=False
    )
    assert not missing.missing_keys, missing
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    base, start, cpu = now(), time.perf_counter(), time.process_time()
    model.train()
    model.feature_extractor.eval()
    with torch.no_grad():
        for part in train.split(8):
            model((part - mean) / std)
        model.subsample_embedding(0.1)
        fitted = time.perf_counter() - start
        model.eval()
        for part in test.split(8):
            model((part - mean) / std)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "fit": fitted, "cpu": cpu, "mb": peak() - base}


WORKERS = {f.__name__: f for f in (coreset_ours, coreset_peer, whole_ours, whole_peer)}


def run(python: str, worker: str, folder: Path, size: int, steps: int = 0) -> dict:
    environment = dict(os.environ) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [python, __file__, "--worker", worker, str(folder), str(size), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{worker} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def images(folder: str | None, count: int, size: int):
    """Images (count, 3, size, size): files of a folder, or rendered parts where none is given."""
    import torch

    if folder:
        from pfungst.data import open_images

        items = open_images(folder)[0].items[:count]
        from pfungst.conditions import Condition

        step = Condition.parse("pillow-bilinear")
        return torch.stack([step(item.read(), size) for item in items])
    from pfungst.datasets.synthetic import make_parts

    part = make_parts(train=count, good=1, defective=1, size=size)[0]
    return part.select(split="train").prepare("pillow-bilinear", size).images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anomalib-python", help="a Python that has anomalib")
    parser.add_argument("--images", help="folder of images; rendered ones by default")
    parser.add_argument("--patches", type=int, nargs="+", default=[12_800, 25_600, 51_200, 102_400])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument(
        "--complete", type=int, default=25_600, help="run the peer to the end up to so many patches"
    )
    parser.add_argument("--peer-steps", type=int, default=200)
    parser.add_argument(
        "--end-to-end", type=int, default=40, help="training images of the end-to-end run; 0: none"
    )
    args = parser.parse_args()
    import torch
    import torchvision
    from safetensors.torch import save_file

    from pfungst.anomaly.coreset import covering_radius, random_coreset
    from pfungst.anomaly.patch_features import PatchFeatures

    peer = args.anomalib_python
    if peer is None:
        print("anomalib: not measured (pass --anomalib-python)")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        count = -(-max(args.patches) // 1024)
        x = images(args.images, max(count, args.end_to_end + 16), 256)
        mean, std = (
            torch.tensor(v).reshape(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        embed = PatchFeatures(network, layer_dim=args.dim, dim=args.dim)
        matrix = np.empty((count * 1024, args.dim), dtype=np.float32)
        with torch.no_grad():
            for i in range(count):
                maps = embed((x[i : i + 1] - mean) / std)
                matrix[i * 1024 : (i + 1) * 1024] = maps[0].flatten(1).T.numpy()
        print(f"\ncoreset, 10 % of N patches of dimension {args.dim}, threads {torch.get_num_threads()}")
        print(
            f"{'N':>8} {'ours s':>8} {'cpu s':>8} {'MB':>6} {'radius':>8} | {'peer s':>9} {'cpu s':>8} {'MB':>6} {'radius':>8} | "
            f"{'faster':>7} {'by cpu':>7}  random's radius",
            flush=True,
        )
        for n in args.patches:
            np.save(folder / "matrix.npy", matrix[:n])
            part, size = torch.from_numpy(matrix[:n]), n // 10
            ours = run(sys.executable, "coreset_ours", folder, size)
            radius = covering_radius(part, torch.from_numpy(np.load(folder / "ours.npy")))
            line = f"{n:>8} {ours['seconds']:>8.1f} {ours['cpu']:>8.1f} {ours['mb']:>6.0f} {radius:>8.4f} | "
            if peer:
                steps = 0 if n <= args.complete else args.peer_steps
                theirs = run(peer, "coreset_peer", folder, size, steps)
                scale = size / theirs["steps"]
                complete = scale == 1
                shown = (
                    f"{covering_radius(part, torch.from_numpy(np.load(folder / 'peer.npy'))):.4f}"
                    if complete
                    else "-"
                )
                line += f"{theirs['seconds'] * scale:>9.1f} {theirs['cpu'] * scale:>8.1f} {theirs['mb']:>6.0f} {shown:>8} | "
                line += f"{theirs['seconds'] * scale / ours['seconds']:>6.1f}x {theirs['cpu'] * scale / ours['cpu']:>6.1f}x"
                line += "" if complete else " (scaled)"
            print(line + f"  {random_coreset(part, size).radius:.4f}", flush=True)
        if args.end_to_end:
            del matrix, part
            save_file(network.state_dict(), folder / "backbone.safetensors")
            np.save(folder / "train.npy", x[: args.end_to_end].numpy())
            np.save(folder / "test.npy", x[args.end_to_end : args.end_to_end + 16].numpy())
            print(
                f"\nend to end: {args.end_to_end} images fitted, 16 scored, 256 px, ResNet-18, dimension 384"
            )
            ours = run(sys.executable, "whole_ours", folder, 0)
            print(
                f"ours: fit {ours['fit']:.1f} s, total {ours['seconds']:.1f} s, cpu {ours['cpu']:.1f} s, {ours['mb']:.0f} MB"
            )
            if peer:
                theirs = run(peer, "whole_peer", folder, 0)
                print(
                    f"anomalib: fit {theirs['fit']:.1f} s, total {theirs['seconds']:.1f} s, cpu {theirs['cpu']:.1f} s, "
                    f"{theirs['mb']:.0f} MB\nfaster: {theirs['seconds'] / ours['seconds']:.1f}x, by cpu "
                    f"{theirs['cpu'] / ours['cpu']:.1f}x"
                )


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        name, folder, size, steps = sys.argv[2:6]
        print(json.dumps(WORKERS[name](Path(folder), int(size), int(steps))))
    else:
        main()
