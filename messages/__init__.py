"""What the orchestrator and the silo agents must agree on: messages, names, weights, stores and queues.

Imports nothing of ours, so that either half can be read, reviewed and replaced without the other.
"""
