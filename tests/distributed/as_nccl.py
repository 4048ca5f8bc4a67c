"""A process group over gloo that keeps NCCL's rules, for ranks without GPUs.

Three things set NCCL apart for those who call `torch.distributed`:

1. It has fewer dtypes: no int16, uint16, uint32 or uint64.
2. A send and its receive meet: neither ends before the other begins. All calls of a rank go one after the other where
   groups have a device (``init_process_group(..., device_id=...)``): two ranks whose orders differ wait for ever.
   Here every call waits until it is done, which is that; gloo keeps what is sent, and forgives.
3. It gathers, and reduces and scatters, parts of different sizes, which gloo does not.

Source: `ncclDataType` and ``pointToPoint`` in torch/csrc/distributed/c10d, NCCLUtils.hpp and ProcessGroupNCCL.cpp.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future
from torch.distributed import ProcessGroup, ProcessGroupGloo
from torch.futures import Future

NAME = "as_nccl"
#: Those that ProcessGroupNCCL knows, and tests may send.
DTYPES = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}


class NotOfNcclError(TypeError):
    """NCCL would refuse this."""


class AsNccl(ProcessGroup):
    """See the module."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = ProcessGroupGloo(store, rank, size, timeout)
        self._rank, self._size, self._met = rank, size, [0] * size

    def size(self) -> int:
        """Return the number of ranks."""
        return self._size

    def getBackendName(self) -> str:
        """Return the name under which torch knows it."""
        return NAME

    @property
    def group_name(self) -> str:
        """The name that torch gave the group."""
        return dist.distributed_c10d._world.pg_names[self]

    def allreduce(self, tensors: Any, opts: Any) -> Any:
        """Add up, or what ``opts`` says, in place."""
        return _done(self._gloo.allreduce(checked(tensors), opts), tensors)

    def broadcast(self, tensors: Any, opts: Any) -> Any:
        """Send one rank's to all."""
        return _done(self._gloo.broadcast(checked(tensors), opts))

    def allgather(self, outputs: Any, inputs: Any, opts: Any) -> Any:
        """Give each rank everyone's, which may be of different sizes."""
        for parts, mine in zip(outputs, checked(inputs), strict=True):
            for rank, part in enumerate(checked(parts)):
                if rank == self._rank:
                    part.copy_(mine)
                options = dist.BroadcastOptions()
                options.rootRank, options.rootTensor = rank, 0
                work = _done(self._gloo.broadcast([part], options))
        return work

    def all_gather_single(self, output: torch.Tensor, given: torch.Tensor, opts: Any) -> Any:
        """Give each rank everyone's, joined."""
        return self.allgather([list(output.chunk(self._size))], [given], opts)

    def all_to_all_single(
        self, output: torch.Tensor, given: torch.Tensor, output_sizes: Any, input_sizes: Any, opts: Any
    ) -> Any:
        """Give each rank its part of everyone's."""
        checked([output, given])
        return _done(self._gloo.alltoall_base(output, given, output_sizes or [], input_sizes or [], opts))

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any) -> Any:
        """Give each rank the sum of its parts, which may be of different sizes."""
        options = dist.AllreduceOptions()
        options.reduceOp = opts.reduceOp
        for output, parts in zip(checked(outputs), inputs, strict=True):
            sums = [part.clone() for part in checked(parts)]
            for each in sums:
                work = _done(self._gloo.allreduce([each], options))
            output.copy_(sums[self._rank])
        return work

    def reduce_scatter_single(self, output: torch.Tensor, given: torch.Tensor, opts: Any) -> Any:
        """Give each rank the sum of its parts."""
        return self.reduce_scatter([output], [list(given.chunk(self._size))], opts)

    def gather(self, outputs: Any, inputs: Any, opts: Any) -> Any:
        """Give one rank everyone's."""
        return _done(self._gloo.gather([checked(each) for each in outputs], checked(inputs), opts))

    def scatter(self, outputs: Any, inputs: Any, opts: Any) -> Any:
        """Give each rank its part of one rank's."""
        return _done(self._gloo.scatter(checked(outputs), [checked(each) for each in inputs], opts))

    def barrier(self, opts: Any = None) -> Any:
        """Wait for all."""
        return _done(self._gloo.barrier())

    def send(self, tensors: Any, rank: int, tag: int) -> Any:
        """Wait until the other receives: the k-th call between two ranks meets the k-th of the other."""
        place, received = self._next(rank), torch.zeros(1)
        _done(self._gloo.send(checked(tensors), rank, place))
        return _done(self._gloo.recv([received], rank, place + 1))

    def recv(self, tensors: Any, rank: int, tag: int) -> Any:
        """Wait until the other sends."""
        place = self._next(rank)
        _done(self._gloo.recv(checked(tensors), rank, place))
        return _done(self._gloo.send([torch.zeros(1)], rank, place + 1))

    def _next(self, rank: int) -> int:
        self._met[rank] += 2
        return self._met[rank]


def checked(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return ``tensors``, or raise `NotOfNcclError`."""
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise NotOfNcclError(f"NCCL does not know {tensor.dtype}")
        if not tensor.is_contiguous():
            raise NotOfNcclError(f"NCCL takes contiguous tensors; this one has strides {tensor.stride()}")
    return tensors


def _done(work: Any, result: Any = None) -> Any:
    """Wait, once: a second time, gloo would wait for another message. DDP asks for the ``result``."""
    work.wait()
    done: Future[Any] = Future()
    done.set_result(result)
    return _create_work_from_future(done)


def register() -> None:
    """Let `init_process_group` know of it."""

    def make(store: Any, rank: int, size: int, timeout: timedelta) -> AsNccl:
        return AsNccl(store, rank, size, timeout)

    dist.Backend.register_backend(NAME, make, devices=["cpu"])
