"""``pfungst audit``: one command per kind of model, with options made from its configuration."""

from __future__ import annotations

import typer

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.cli.common import finish, group
from pfungst.cli.options import from_config

audit: typer.Typer = group("Audit a model: explain, measure, mitigate, report.")


@audit.command("anomaly")
@from_config(AnomalyConfig, argument="data")
def audit_anomaly(config: AnomalyConfig) -> None:
    """Does an anomaly detector look at the defects, and does it survive deployment?"""
    from pfungst.audit.anomaly.run import dry_run, run

    if config.dry_run:
        typer.echo(dry_run(config))
    else:
        finish(run(config), config.out, config.fail_on)


@audit.command("similarity")
@from_config(SimilarityConfig)
def audit_similarity(config: SimilarityConfig) -> None:
    """What makes two inputs alike to an encoder, and does a probe on it survive?"""
    from pfungst.audit.compare_models import run_models
    from pfungst.audit.similarity.run import dry_run
    from pfungst.report import write

    if config.dry_run:
        typer.echo(dry_run(config))
    else:
        finish(run_models(config, write), config.out, config.fail_on)


@audit.command("classifier")
@from_config(ClassifierConfig)
def audit_classifier(config: ClassifierConfig) -> None:
    """Which spurious features does a classifier rely on, how much, and what if they are switched off?"""
    from pfungst.audit.classifier.run import dry_run
    from pfungst.audit.compare_models import run_models
    from pfungst.report import write

    if config.dry_run:
        typer.echo(dry_run(config))
    else:
        finish(run_models(config, write), config.out, config.fail_on)
