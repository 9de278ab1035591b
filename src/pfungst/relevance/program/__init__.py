"""The linearised network as a program: read off one rewritten forward pass, run forward and in reverse."""
