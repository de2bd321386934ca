"""The same rounds with the two frameworks people compare Silobus to, and their aggregates beside ours.

    make peers                                                     # once: an environment of its own for each
    python -m benchmarks.peers --silos 3 --megabytes 1,64 --rounds 5
    python -m benchmarks.peers.equality

What is in `inside/` runs in a peer's environment, imports it, and is never imported here. Nothing of a peer is
installed beside Silobus, and nothing here is taken from its examples.
"""
