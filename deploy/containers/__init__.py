"""Images, and a federation of containers on one machine."""
