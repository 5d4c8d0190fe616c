"""Following one real connection through the kernel: what each hook told of it, in order, and what became of it."""
