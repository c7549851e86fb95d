# --8<-- [start:chain]
job=$(sbatch --parsable prepare.sbatch ct/ stores/ct)
sbatch --dependency=afterany:$job pretrain.sbatch my.yaml stores/ct runs/mine
# --8<-- [end:chain]

# --8<-- [start:settings]
sbatch prepare.sbatch ct/ stores/ct --spacing_mm 1.5,1.5,3
# --8<-- [end:settings]
