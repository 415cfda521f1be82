"""The gRPC front: it translates between the wire and the service, and decides nothing about checkpoints."""
