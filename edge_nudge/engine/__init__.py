"""The native edge: model files, the llama.cpp backend, the machine it runs on."""
