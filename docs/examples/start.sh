# What the page `Start` shows, in its order.

# --8<-- [start:environment]
python3 -m venv venv && source venv/bin/activate
# --8<-- [end:environment]

# --8<-- [start:cpu]
pip install torch --index-url https://download.pytorch.org/whl/cpu
# --8<-- [end:cpu]

# --8<-- [start:install]
pip install -e .
# --8<-- [end:install]

# --8<-- [start:demo]
mim3d demo
# --8<-- [end:demo]

# --8<-- [start:inspect]
mim3d inspect scans/
# --8<-- [end:inspect]

# --8<-- [start:prepare]
mim3d prepare scans/ --out stores/mine
# --8<-- [end:prepare]

# --8<-- [start:pretrain]
mim3d pretrain hippocampus --data.store stores/mine --out runs/pretrained
# --8<-- [end:pretrain]

# --8<-- [start:finetune]
mim3d finetune hippocampus --data.store stores/mine --init runs/pretrained --out runs/tuned
# --8<-- [end:finetune]

# --8<-- [start:scratch]
mim3d finetune hippocampus --data.store stores/mine --init none --out runs/scratch
# --8<-- [end:scratch]

# --8<-- [start:predict]
mim3d predict runs/tuned scan.nii.gz --out predictions
# --8<-- [end:predict]

# --8<-- [start:evaluate]
mim3d predict runs/tuned scans/imagesVal --out judged
mim3d evaluate judged scans/labelsVal --out results.json
# --8<-- [end:evaluate]

# --8<-- [start:look]
mim3d view scan.nii.gz predictions
mim3d report runs/pretrained runs/tuned runs/scratch results.json --out report.html
# --8<-- [end:look]

# --8<-- [start:worth]
mim3d probe runs/pretrained --store stores/mine --readers knn,linear
# --8<-- [end:worth]

# --8<-- [start:doctor]
mim3d doctor
mim3d info runs/tuned
# --8<-- [end:doctor]
