"""Blocks between machines, by the trustless gateway protocol: what is fetched is verified, whoever sent it; what is served is local."""
