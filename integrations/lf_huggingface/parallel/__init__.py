"""`lf_huggingface.context_parallel`: a model whose sequences are shared by the ranks of a mesh.

context.py      what users call: the handle with `shard`, `gather` and `average_gradients`
batches.py      a batch cut into slices, and what all ranks know of it
sharded.py      which of the batches that were cut a forward has
layers.py       which layers attend, and whether their windows allow it
heads.py        losses and pooled tokens of whole sequences, by hooks on a model
encoders.py     encoders that take their slice themselves, in models that have the batch whole
collectives.py  sums, first tokens and whole sequences over ranks, with derivatives
gradients.py    the gradients of parameters, averaged
trainer.py      transformers' Trainer over ranks

The loss is the same number on all ranks, and each calls backward on it. Every operator between ranks has the
derivative of the sum of all their losses, so the gradient of a parameter is the mean of what the ranks have:
what FullyShardedDataParallel computes where the mesh that it shards over holds these ranks.
"""
