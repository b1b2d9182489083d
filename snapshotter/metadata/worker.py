"""``python -m snapshotter.metadata.worker``: builds metadata, one `Job` or `ChainJob` after the other, as `workers.Workers` sends them on standard input.

Each is done by a fork, which has all modules already and gives all memory back: a layer of 30,000 entries takes 80 MB, of which Python would keep most.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import struct
import sys
from typing import BinaryIO, NoReturn

import snapshotter.metadata.beside  # noqa: F401 - so that the first job does not wait for it
from ipfs_store.errors import IpfsStoreError
from snapshotter.metadata.kept import ChainJob, Job, build, build_chain

LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1


def main(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Answer each job with a pickled None or error, or with nothing where its fork failed or was killed, until ``jobs`` ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end we notice
    gc.freeze()
    gc.disable()  # trees of 30,000 inodes without a cycle: looking for some costs a third of the time
    while len(head := jobs.read(LENGTH.size)) == LENGTH.size:
        job = jobs.read(*LENGTH.unpack(head))
        child = os.fork()
        if not child:
            _fork(job, answers)
        del job
        if os.waitpid(child, 0)[1]:
            _answer(answers, b"")


def _fork(job: bytes, answers: BinaryIO) -> NoReturn:
    """Do the job, answer, and end; what is not expected ends it with a traceback."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # who cancels the job kills the worker
    _answer(answers, pickle.dumps(_do(pickle.loads(job))))  # from our own parent
    os._exit(0)


def _answer(answers: BinaryIO, data: bytes) -> None:
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
