"""`python -m stages NAME`: what dvc.yaml runs."""

from stages.cli import main

main()
