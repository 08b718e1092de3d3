"""Checkpoints: complete or not there, verified before use, the last good one found by itself.

A checkpoint is the folder `step_000010/` with the weights and optimizer state in the format of
torch.distributed.checkpoint (each rank writes its shards), `state.json` and `rank_00000.json` for
everything else, and `manifest.json` with the size and SHA-256 of every file. It is written as
`step_000010.tmp/`, flushed to disk, and renamed when complete, so a crash leaves the previous one.
With several machines the folder must be on a shared file system.

Resuming at the same world size is bit-exact. At another world size or expert-parallel degree,
weights and optimizer state are resharded without loss, but sums over ranks run in another order.

The manifest tells damage, not origin: torch.distributed.checkpoint keeps its index as a pickle, so
load only checkpoints that you or your own runs wrote. Weights from others come in as safetensors.
"""
