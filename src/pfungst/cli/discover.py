"""``pfungst discover``."""

from __future__ import annotations

import typer

from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.cli.common import finish
from pfungst.cli.options import from_config


@from_config(DiscoveryConfig)
def discover(config: DiscoveryConfig) -> None:
    """What does a model rely on that nobody named? Its explanations, clustered and proved."""
    from pfungst.audit.discovery.run import dry_run, run

    if config.dry_run:
        typer.echo(dry_run(config))
    else:
        finish(run(config), config.out, config.fail_on)
