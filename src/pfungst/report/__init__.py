"""The report of an audit: one self-contained HTML file that opens offline."""

from pfungst.report.write import FILE, build, write

__all__ = ["FILE", "build", "write"]
