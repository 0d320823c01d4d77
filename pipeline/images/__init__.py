"""Images: where they come from, how they are stored, and how they are read in batches."""

# An image of this size takes 192 MiB; FFCV, which holds five batches, needs far smaller ones.
MAX_SIDE = 8192
