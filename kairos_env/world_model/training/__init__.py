"""Training: batches from episodes, losses, the resumable loop, the two stages."""
