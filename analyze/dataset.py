"""A stream of states as a dataset of PyTorch's; apart from analyze.streaming, so that whoever wants arrays loads no PyTorch.

Shape suffixes: as there.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import IterableDataset, get_worker_info

from analyze.streaming import Stream
from extract.encoding import to_torch


class StreamedStates(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """A stream for `torch.utils.data.DataLoader(dataset, batch_size=None)`: row numbers and states, batch after batch.

    A rank's rows are shared by the loader's workers, so that each comes once whatever their number. A worker opens the store
    itself, because connections do not survive a fork.
    """

    def __init__(self, stream: Stream, rank: int, world_size: int) -> None:
        super().__init__()
        stream.batches(0, rank, world_size)  # refuses what cannot be
        self.stream = stream
        """What is read."""
        self._part = rank, world_size
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist see it change

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is; without it every pass has the order of epoch 0.

        Raises:
            ValueError: there is no such epoch.
        """
        if epoch < 0:
            raise ValueError(f"epochs count from 0, so there is no epoch {epoch}")
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        (rank, world_size), worker, stream = self._part, get_worker_info(), self.stream
        if worker is not None:
            rank, world_size = rank * worker.num_workers + worker.id, world_size * worker.num_workers
            stream = replace(stream, run=stream.run.opened_again())
        kept = stream.run.manifest.identity.stored_dtype if stream.dtype == "stored" else stream.dtype
        for batch in stream.batches(int(self._epoch), rank, world_size):
            yield torch.from_numpy(batch.rows), to_torch(batch.hidden, kept)
