# What the page `Coming from nnU-Net` shows.

# --8<-- [start:walk]
mim3d prepare nnUNet_raw/Dataset004_Hippocampus --out stores/hippocampus
mim3d pretrain hippocampus --data.store stores/hippocampus --out runs/encoder
mim3d finetune hippocampus --data.store stores/hippocampus --init runs/encoder --out runs/segmenter
mim3d predict runs/segmenter nnUNet_raw/Dataset004_Hippocampus/imagesTs --out predictions
# --8<-- [end:walk]

# --8<-- [start:fold]
mim3d finetune hippocampus --data.store stores/hippocampus --init runs/encoder \
    --data.fold 0 --out runs/fold0
# --8<-- [end:fold]

# --8<-- [start:ensemble]
mim3d predict runs/segmenter,runs/fold0 scan.nii.gz --out ensemble
# --8<-- [end:ensemble]

# --8<-- [start:out]
mim3d export stores/hippocampus --format nnunet --out nnUNet_raw/Dataset005_Again
# --8<-- [end:out]
