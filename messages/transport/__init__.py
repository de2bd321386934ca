"""Adapters for the ports in `messages.ports`: one file per technology, each the only one that touches its SDK."""
