"""Format `gguf`: blocks of llama.cpp, the container around them, and what its consumers see."""
