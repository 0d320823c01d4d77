"""Complete parameter files, one per experiment; a package so that they are installed with it."""
