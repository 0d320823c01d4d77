"""One file per DVC stage; each reads parameters, calls `pipeline`, and writes outputs."""
