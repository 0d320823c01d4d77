"""Images: where they come from, how they are stored, and how they are read in batches."""
