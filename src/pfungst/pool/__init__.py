"""Millions of unlabelled images: index, score once, search for any component, label, export."""

from pfungst.pool.component import Component, read_component
from pfungst.pool.export import to_label_task, to_spurious_folder
from pfungst.pool.index import Pool, index, open_pool
from pfungst.pool.model import PoolModel
from pfungst.pool.score import ScoreSummary, score
from pfungst.pool.search import Direction, Hit, direction, search

__all__ = [
    "Component",
    "Direction",
    "Hit",
    "Pool",
    "PoolModel",
    "ScoreSummary",
    "direction",
    "index",
    "open_pool",
    "read_component",
    "score",
    "search",
    "to_label_task",
    "to_spurious_folder",
]
