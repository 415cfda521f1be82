"""Where checkpoints are kept: the port that every engine offers, the transactions that run on it, and the engines."""
