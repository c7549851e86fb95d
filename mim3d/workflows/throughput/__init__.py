"""What each stage costs on this machine: contestants in turns, the machine's limits, a table."""
