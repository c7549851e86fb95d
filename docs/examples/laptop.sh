# What the page `On a laptop` shows.

# --8<-- [start:install]
pip install torch --index-url https://download.pytorch.org/whl/cpu
pip install -e .
# --8<-- [end:install]

# --8<-- [start:doctor]
mim3d doctor
# --8<-- [end:doctor]

# --8<-- [start:plan]
mim3d plan hippocampus --verb pretrain --store stores/mine
# --8<-- [end:plan]

# --8<-- [start:short]
mim3d pretrain hippocampus --data.store stores/mine --out runs/short --training.steps 200
# --8<-- [end:short]

# --8<-- [start:small]
mim3d finetune hippocampus --data.store stores/mine --init runs/short --out runs/small \
    --decoder.name light --data.crop_size 32,32,32
# --8<-- [end:small]

# --8<-- [start:again]
mim3d pretrain hippocampus --data.store stores/mine --out runs/short --training.steps 200
# --8<-- [end:again]
