"""The boundary to the native core: which back end runs, and one file for each operation."""
