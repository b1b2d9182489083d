"""The snapshots v1 gRPC service."""
