"""Wire facts of containerd's gRPC services, compiled by `scripts/protos`; only the .proto files are written by hand."""
