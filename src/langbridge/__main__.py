"""`python -m langbridge`, also for `accelerate launch -m langbridge train ...`."""

from langbridge.cli import main

main()
