"""What discovery finds: searched, proved, concluded; for its own command and as a section of each audit."""
