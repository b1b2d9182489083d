"""``python -m snapshotter.metadata.worker``: builds metadata, one `Job` or `ChainJob` after the other, as `workers.Workers` sends them on standard input."""

from __future__ import annotations

import gc
import pickle
import signal
import struct
import sys
from typing import BinaryIO

import snapshotter.metadata.beside  # noqa: F401 - so that the first job does not wait for it
from ipfs_store.errors import IpfsStoreError
from snapshotter.metadata.kept import ChainJob, Job, build, build_chain

LENGTH = struct.Struct("<Q")


def main(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Answer each job with a pickled None or error until ``jobs`` ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end we notice
    gc.freeze()
    gc.disable()  # trees of 30,000 inodes without a cycle: looking for some costs a third of the time
    while len(head := jobs.read(LENGTH.size)) == LENGTH.size:
        job = pickle.loads(jobs.read(*LENGTH.unpack(head)))  # from our own parent
        data = pickle.dumps(_do(job))
        answers.write(LENGTH.pack(len(data)) + data)
        answers.flush()


def _do(job: Job | ChainJob) -> IpfsStoreError | None:
    try:
        if isinstance(job, ChainJob):
            build_chain(job)
        else:
            build(job)
    except IpfsStoreError as error:
        return error.with_traceback(None)
    return None


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
