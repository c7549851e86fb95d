# What the page `Coming from TotalSegmentator` shows.

# --8<-- [start:predict]
mim3d predict runs/tuned scan.nii.gz --out predictions
# --8<-- [end:predict]

# --8<-- [start:folder]
mim3d predict runs/tuned scans/imagesVal --out predictions
# --8<-- [end:folder]

# --8<-- [start:fast]
mim3d predict runs/tuned scan.nii.gz --out fast --inference.overlap 0.25
# --8<-- [end:fast]

# --8<-- [start:slicer]
mim3d predict runs/tuned scan.nii.gz --out slicer --label_format seg.nrrd
# --8<-- [end:slicer]

# --8<-- [start:view]
mim3d view scan.nii.gz predictions
# --8<-- [end:view]
