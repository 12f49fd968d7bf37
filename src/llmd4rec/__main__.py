"""`python -m llmd4rec`, which is what `torchrun` starts."""

from llmd4rec.cli import main

main()
