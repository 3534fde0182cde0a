"""What happens to a model after pruning: recovery."""
