# What the page `Coming from MONAI` shows.

# --8<-- [start:in]
mim3d convert unetr.pt --out runs/unetr --segmenter.modality mr
mim3d predict runs/unetr scan.nii.gz --out by-unetr
# --8<-- [end:in]

# --8<-- [start:init]
mim3d finetune my.yaml --data.store stores/mine --init runs/unetr --out runs/mine
# --8<-- [end:init]

# --8<-- [start:out]
mim3d export runs/pretrained --format monai --out encoder.safetensors
# --8<-- [end:out]
