"""Training: configuration, the loop every task shares, optimizer and schedule, checkpoints,
logging.

Nothing is imported here, so that the configuration can be read without loading torch.
"""
