"""The specification: every operation in plain torch, one file each, slow and obvious."""
