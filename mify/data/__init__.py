"""Tokens to batches: shards, exact FIM, packing that loses nothing, an order that survives anything.

Usable without the rest of mify. In a loop of one's own, or through `DataLoader(stream, batch_size=None)`:

    stream = TokenStream([Source("code", "shards/code", 0.8), Source("text", "shards/text", 0.2)],
                         context=4096, rows_per_step=64, seed=1, fim=FimConfig(rate=0.25), rank=rank, world_size=world)
    stream.load_state_dict(checkpoint["data"])      # exact, on any number of ranks
    for batch in stream:                            # a PackedBatch: tokens, shifted labels, positions, cu_seqlens
        ...

`examples/` has it in Megatron's, torchtitan's and Hugging Face's trainers.

The way of a document: `shards` → `plan` (`fim`, `fragments`, `packing`; keyed by `philox`) → `rows` → `batch`.
"""
