"""Format `onnx`: the graph of a model around the codes of the grid, and what its consumers see."""
