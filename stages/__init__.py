"""The commands; each reads its options and parameters, calls `pipeline`, and writes outputs."""
