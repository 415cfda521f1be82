"""The in-memory store without its two faces: what it keeps, what it refuses, what it answers. Nothing here waits."""
