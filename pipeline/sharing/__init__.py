"""What makes a store travel: signatures, and fetching from where others keep it."""
