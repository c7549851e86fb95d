# What the page `In your own loop` shows beside its Python.

# --8<-- [start:export]
pip install -e ".[export]"
mim3d export runs/pretrained --format monai --out vit.safetensors
mim3d export runs/tuned --format onnx --out segmenter.onnx
# --8<-- [end:export]

# --8<-- [start:embed]
mim3d embed runs/pretrained stores/mine --out features.h5
# --8<-- [end:embed]
