"""Audit of encoders: what makes two inputs look alike."""
