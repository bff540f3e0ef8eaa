"""The update: advantages, batches, loss."""
