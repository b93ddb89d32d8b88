"""What no paper discusses: the loop over updates, the optimizer, checkpoints and stopping."""
