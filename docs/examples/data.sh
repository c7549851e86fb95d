# What the page `Data as it lies around` shows.

# --8<-- [start:inspect]
mim3d inspect hippocampus_msd
# --8<-- [end:inspect]

# --8<-- [start:sources]
mim3d inspect nnUNet_raw/Dataset004_Hippocampus
mim3d inspect bids/ --prepare.contrasts T1w,FLAIR
mim3d inspect cases.csv
mim3d inspect dicom/ --read.series largest
# --8<-- [end:sources]

# --8<-- [start:nnunet]
mim3d export stores/mine --format nnunet --out nnUNet_raw/Dataset123_Name
# --8<-- [end:nnunet]

# --8<-- [start:seg]
mim3d predict runs/tuned scan.nii.gz --out predictions --label_format seg.nrrd
# --8<-- [end:seg]
