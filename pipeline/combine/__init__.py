"""Making stores out of stores: merged, averaged, cut down, at another temperature."""
