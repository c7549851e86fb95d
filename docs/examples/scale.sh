# What the page `Many volumes, many devices` shows.

# --8<-- [start:plan]
mim3d plan my.yaml                                        # on this machine
mim3d plan hippocampus --verb pretrain --store stores/mine
mim3d plan my.yaml --gpu h200 --devices 64 --volumes 100000 --out plan.json
# --8<-- [end:plan]

# --8<-- [start:many]
mim3d plan ct100k.yaml --gpu h200 --devices 64 --volumes 100000 --epochs 100 \
    --plan.disk_mb_s 125 --plan.resident_gb 100
# --8<-- [end:many]

# --8<-- [start:torchrun]
torchrun --nnodes=8 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=$HEAD:29500 \
    -m mim3d pretrain ct100k.yaml --data.store stores/ct100k \
    --data.window_cases 36864 --data.max_crops_per_visit 703 --training.steps 217014
# --8<-- [end:torchrun]
