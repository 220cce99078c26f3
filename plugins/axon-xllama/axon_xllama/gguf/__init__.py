"""GGUF files, which llama.cpp and what is built on it run: written from an X-Llama, and read into one."""
