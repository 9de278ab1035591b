"""Results to experiment trackers: one function each, whose library is imported when it is called."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pfungst.audit.result import FILE, Result
from pfungst.errors import ConfigError

_FILES = (FILE, "report.html")


def log_mlflow(result: Result, folder: str | Path | None = None, prefix: str = "pfungst.") -> None:
    """Log metrics, verdict and files to MLflow's active run, or to one of its own (extra ``mlflow``).

    Args:
        folder: of the audit; its result and report become artifacts. prefix: of all names.

    Raises:
        ConfigError: MLflow is not installed.
    """
    mlflow = _library("mlflow")
    own = mlflow.active_run() is None
    if own:
        mlflow.start_run(run_name=result.title)
    try:
        mlflow.log_metrics({f"{prefix}{name}": m.value for name, m in result.metrics.items()})
        mlflow.set_tags({f"{prefix}{name}": text for name, text in _words(result).items()})
        for file in _files(folder):
            mlflow.log_artifact(str(file), artifact_path="pfungst")
    finally:
        if own:
            mlflow.end_run()


def log_wandb(result: Result, folder: str | Path | None = None, prefix: str = "pfungst/") -> None:
    """Log metrics, verdict and the report to the active run of Weights & Biases (extra ``wandb``).

    Args:
        folder: of the audit, whose report is shown. prefix: of all names.

    Raises:
        ConfigError: the library is not installed, or no run is active.
    """
    wandb = _library("wandb")
    if wandb.run is None:
        raise ConfigError("no run of Weights & Biases is active", "call wandb.init(...) first")
    values: dict[str, Any] = {f"{prefix}{name}": m.value for name, m in result.metrics.items()}
    for file in _files(folder):
        if file.suffix == ".html":
            values[f"{prefix}report"] = wandb.Html(file.read_text(encoding="utf-8"))
    wandb.run.log(values)
    wandb.run.summary.update({f"{prefix}{name}": text for name, text in _words(result).items()})


def log_tensorboard(
    result: Result,
    folder: str | Path | None = None,
    prefix: str = "pfungst/",
    writer: Any = None,
    step: int = 0,
) -> None:
    """Log metrics and verdict to TensorBoard (extra ``tensorboard``).

    Args:
        folder: where the events go if no writer is given, ``FOLDER/tensorboard``. prefix: of all names.
        writer: a `torch.utils.tensorboard.SummaryWriter`; it is left open. step: of the metrics.

    Raises:
        ConfigError: TensorBoard is not installed, or neither folder nor writer is given.
    """
    made = None
    if writer is None:
        _library("tensorboard")
        if folder is None:
            raise ConfigError("nowhere to log to", "pass folder= or writer=")
        made = writer = _library("torch.utils.tensorboard").SummaryWriter(str(Path(folder) / "tensorboard"))
    for name, metric in result.metrics.items():
        writer.add_scalar(f"{prefix}{name}", metric.value, step)
    told = "\n\n".join([f"**{result.verdict.level}**: {result.verdict.headline}", *result.verdict.sentences])
    writer.add_text(f"{prefix}verdict", told, step)
    writer.flush()
    if made is not None:
        made.close()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        extra = name.rpartition(".")[2]
        raise ConfigError(f"{extra} is not installed", f"pip install 'pfungst[{extra}]'") from None


def _words(result: Result) -> dict[str, str]:
    return {
        "kind": result.kind,
        "version": result.version,
        "verdict": result.verdict.level,
        "headline": result.verdict.headline,
    }


def _files(folder: str | Path | None) -> list[Path]:
    return [] if folder is None else [Path(folder) / n for n in _FILES if (Path(folder) / n).is_file()]
