# What the page `What the convergence benchmark measures` shows.

# --8<-- [start:dry]
mim3d benchmark convergence few_labels --convergence.store stores/mine --out runs/convergence --dry_run
# --8<-- [end:dry]

# --8<-- [start:run]
mim3d benchmark convergence few_labels --convergence.store stores/mine --out runs/convergence
# --8<-- [end:run]

# --8<-- [start:report]
mim3d report runs/convergence --out benchmark.html
# --8<-- [end:report]
