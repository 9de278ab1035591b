"""What a classifier reads that nobody named: ``pfungst discover``."""
