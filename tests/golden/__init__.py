"""Golden files: every message and document as each version wrote it. README.md beside this says what they are for."""
